"""Stacking, cutting, and the order of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.messages import Selection
from common.weights.tensors import from_array, to_array
from learner.batch import broadcast_batch, collate
from learner.engines.single import SingleEngine
from tests.support.learner.fakes import LATENT, make_group, tiny_config


def test_a_batch_is_a_set_in_the_order_of_ordinals() -> None:
    one, other = collate([make_group(5), make_group(2)]), collate([make_group(2), make_group(5)])
    assert one.ordinals == other.ordinals == (2, 5)
    assert len(one) == 2
    assert one.latents.shape == (2, 2, *LATENT)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert torch.equal(one.latents[1, 1], from_array(make_group(5).latents[1]))


def test_values_stay_with_their_group() -> None:
    pairs = collate([make_group(1, gap=0.5, lag=2), make_group(0, gap=0.25)])
    assert pairs.weights.tolist() == [[0.25, 0.25], [0.5, 0.5]]
    assert pairs.lag.tolist() == [0.0, 2.0]
    assert pairs.rewards.tolist() == [[0.75, 0.5], [0.75, 0.5]]


def test_a_part_keeps_every_row_together() -> None:
    whole = collate([make_group(ordinal) for ordinal in range(4)])
    part = whole.part(1, 3)
    assert part.ordinals == (1, 2)
    assert [prompt.id for prompt in part.prompts] == ["prompt-1", "prompt-2"]
    for name, tensor in part.tensors().items():
        assert torch.equal(tensor, whole.tensors()[name][1:3]), name


def test_text_to_video_groups_have_no_image() -> None:
    pair = make_group(0)
    pairs = collate([replace(pair, conditioning=replace(pair.conditioning, image_latent=None))])
    assert pairs.image_latent is None
    assert "image_latent" not in pairs.tensors()
    assert pairs.part(0, 1).to("cpu").image_latent is None


@pytest.mark.parametrize("pairs", [None, collate([make_group(0)])])
def test_one_rank_broadcasts_nothing(pairs: object) -> None:
    engine = SingleEngine(torch.nn.Linear(1, 1), tiny_config().learner)
    assert broadcast_batch(pairs, engine) is pairs  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [1, 4])
def test_any_number_of_candidates_may_be_kept(kept: int) -> None:
    batch = collate([make_group(ordinal, kept=kept) for ordinal in range(3)])
    assert batch.latents.shape == (3, kept, *LATENT)
    assert batch.weights.shape == batch.rewards.shape == (3, kept)


def test_all_groups_of_a_batch_keep_the_same_number() -> None:
    with pytest.raises(ValueError, match=r"keep \[1, 2\] candidates; all must keep the same number"):
        collate([make_group(0), make_group(1, kept=1)])


def test_conditions_of_candidates_follow_the_selection() -> None:
    """Of candidates with conditions of their own, those of the kept ones, in their order."""
    group = make_group(0)
    texts = torch.stack([torch.full((2, 3), float(index)) for index in range(4)])
    images = torch.stack([torch.full((1, 4, 2, 2), 10.0 + index) for index in range(4)])
    own = replace(group.conditioning, prompt_embeds=to_array(texts), image_latent=to_array(images))
    batch = collate([replace(group, conditioning=own, selection=Selection((3, 1), (1.0, 1.0)))])
    assert batch.image_latent is not None
    assert batch.prompt_embeds[0, :, 0, 0].tolist() == [3.0, 1.0]
    assert batch.image_latent[0, :, 0, 0, 0, 0].tolist() == [13.0, 11.0]


def test_groups_with_and_without_an_image_do_not_share_a_batch() -> None:
    group = make_group(3)
    textual = replace(group, conditioning=replace(group.conditioning, image_latent=None))
    with pytest.raises(ValueError, match=r"groups \[3\] have no image latent, the others of the batch have one"):
        collate([make_group(1), textual])
    assert collate([textual]).image_latent is None
