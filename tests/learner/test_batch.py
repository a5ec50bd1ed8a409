"""Stacking, cutting, and the order of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.weights.tensors import from_array
from learner.batch import collate, share
from learner.engines.single import SingleEngine
from tests.support.learner.fakes import LATENT, make_pair, tiny_config


def test_a_batch_is_a_set_in_the_order_of_ordinals() -> None:
    one, other = collate([make_pair(5), make_pair(2)]), collate([make_pair(2), make_pair(5)])
    assert one.ordinals == other.ordinals == (2, 5)
    assert len(one) == 2
    assert one.winner.shape == (2, *LATENT)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert torch.equal(one.loser[1], from_array(make_pair(5).loser_latents))


def test_numbers_travel_with_their_pair() -> None:
    pairs = collate([make_pair(1, gap=0.5, lag=2), make_pair(0, gap=0.25)])
    assert pairs.gap.tolist() == [0.25, 0.5]
    assert pairs.lag.tolist() == [0.0, 2.0]
    assert pairs.rewards.tolist() == [[0.75, 0.5], [0.75, 0.5]]


def test_a_part_keeps_every_row_together() -> None:
    whole = collate([make_pair(ordinal) for ordinal in range(4)])
    part = whole.part(1, 3)
    assert part.ordinals == (1, 2)
    for name, tensor in part.tensors().items():
        assert torch.equal(tensor, whole.tensors()[name][1:3]), name


def test_text_to_video_pairs_have_no_image() -> None:
    pair = make_pair(0)
    pairs = collate([replace(pair, conditioning=replace(pair.conditioning, image_latent=None))])
    assert pairs.image_latent is None
    assert "image_latent" not in pairs.tensors()
    assert pairs.part(0, 1).to("cpu").image_latent is None


@pytest.mark.parametrize("pairs", [None, collate([make_pair(0)])])
def test_one_rank_shares_with_nobody(pairs: object) -> None:
    engine = SingleEngine(torch.nn.Linear(1, 1), tiny_config().learner)
    assert share(pairs, engine) is pairs  # type: ignore[arg-type]
