"""DPO on pairs that people made: the loss is DPO's, the reference is frozen."""

from __future__ import annotations

import pytest
import torch

from common.config import load_config
from common.errors import ConfigError
from learner.algorithms.dpo import Dpo
from learner.algorithms.human_pairs import HumanPairs
from tests.support.learner.algorithms import BETTER


def test_the_loss_is_that_of_dpo_and_the_reference_stays() -> None:
    human, dpo = HumanPairs(HumanPairs.Config(name="human_pairs", beta=5.0)), Dpo(Dpo.Config(name="dpo", beta=5.0))
    assert torch.equal(human.loss(BETTER).loss, dpo.loss(BETTER).loss)
    assert human.select([1.0, 0.25]) == dpo.select([1.0, 0.25])
    assert not any(human.reference_update(step) for step in range(1, 1000))


def test_a_refresh_cannot_be_configured() -> None:
    with pytest.raises(ConfigError, match=r"--algorithm\.refresh_every: unknown key"):
        load_config(flags={"algorithm.name": "human_pairs", "algorithm.refresh_every": "5"})
