"""Training the heads: it learns, it resumes to the same weights, and ranks are counted right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.messages import Prompt
from common.training.fit import FitConfig
from rewarders.toon_heads.heads import HEADS, ToonHead
from rewarders.toon_heads.training.dataset import Samples, draw_samples
from rewarders.toon_heads.training.evaluate import evaluate_heads, evaluate_signals, prompts_of
from rewarders.toon_heads.training.train import (
    head_loss,
    muon_parameters,
    recolouring,
    train_head,
    train_heads,
)

quiet = lambda line: None  # noqa: E731


@pytest.fixture(scope="module")
def few() -> Samples:
    return draw_samples(12, 3, degraded=0.25)


def test_a_head_overfits_a_few_clips(tmp_path: Path, few: Samples) -> None:
    head = train_head("image", lambda: few, tmp_path, 0, FitConfig(steps=80, lr=5e-3, warmup=3), quiet, batch=8)
    scores = np.array(head.score(list(few.clips), prompts_of(few)))
    truths = few.truth_of("image")
    assert scores[truths < 90].max() < scores[truths == 100].min()
    assert np.abs(scores - truths).mean() < 0.6 * np.abs(truths - truths.mean()).mean()


def test_a_resumed_training_ends_in_the_same_weights(tmp_path: Path, few: Samples) -> None:
    plan = FitConfig(steps=4, lr=1e-3, save_every=2)

    def cut(line: str) -> None:
        if "step 2/4" in line:
            raise KeyboardInterrupt

    whole = train_head("text", lambda: few, tmp_path / "whole", 0, plan, quiet, batch=4)
    with pytest.raises(KeyboardInterrupt):
        train_head("text", lambda: few, tmp_path / "cut", 0, plan, cut, batch=4)
    torch.manual_seed(99)  # the global generator plays no part
    resumed = train_head("text", lambda: few, tmp_path / "cut", 0, plan, quiet, batch=4)
    assert resumed.digest == whole.digest
    assert train_head("text", lambda: few, tmp_path / "other", 1, plan, quiet, batch=4).digest != whole.digest


def test_finished_heads_are_not_trained_again(tmp_path: Path) -> None:
    plan = FitConfig(steps=1, lr=1e-3)
    lines: list[str] = []
    heads = train_heads(tmp_path, 0, log=lines.append, plan=plan, clips=3, batch=2)
    assert [head.dimension for head in heads] == list(HEADS)
    assert lines.count("heads: rendering 3 clips") == 1
    lines.clear()
    assert [head.digest for head in train_heads(tmp_path, 0, log=lines.append, plan=plan, clips=3, batch=2)] == [
        head.digest for head in heads
    ]
    assert lines == []


def test_muon_takes_what_is_a_matrix() -> None:
    head = ToonHead("text")
    taken = {id(one) for one in muon_parameters(head)}
    names = {name for name, one in head.named_parameters() if id(one) in taken}
    assert {"look.weight", "frame.weight", "map.weight", "time.0.weight", "time.2.weight"} <= names
    assert not names & {"places", "time.4.weight"}
    assert not [name for name in names if name.endswith("bias")]


def test_the_loss_is_least_at_the_truth(few: Samples) -> None:
    class Knows(ToonHead):
        def forward(self, video: torch.Tensor, first: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return self.answer

    head, chosen = Knows("appeal"), np.arange(4)
    bad = torch.from_numpy(few.badness_of("appeal")[:4])
    losses = []
    for answer in (bad, (bad + 0.2).clamp(0, 1), torch.full((4, 8), 0.5)):
        head.answer = answer
        losses.append(head_loss(head, few, chosen, np.random.default_rng(0)).item())
    assert losses[0] == min(losses)
    assert losses[2] == pytest.approx(np.log(2), rel=1e-5)  # cross-entropy of one half, whatever the target


def test_recolouring_exchanges_and_dims_channels() -> None:
    mixes = recolouring(np.random.default_rng(0), 200)
    assert mixes.shape == (200, 3, 3)
    assert ((mixes > 0).sum(1) == 1).all()
    assert ((mixes > 0).sum(2) == 1).all()
    values = mixes[mixes > 0]
    assert 0.67 <= values.min() < 0.7
    assert 0.97 < values.max() <= 1.0
    assert len({tuple(m.argmax(1).tolist()) for m in mixes}) == 6


def test_evaluation_names_every_dimension(few: Samples) -> None:
    class Oracle:
        dimension = "motion"
        digest = "o"

        def score(self, clips: list[np.ndarray], prompts: list[Prompt]) -> list[float]:
            return [float(few.truth_of("motion")[prompt.ordinal]) for prompt in prompts]

    assert evaluate_heads([Oracle()], few) == {"motion": pytest.approx(1.0)}
    assert list(evaluate_signals(few)) == list(HEADS)
