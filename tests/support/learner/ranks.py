"""One rank of a learner, as a program: ``python -m tests.support.learner.ranks RANK WORLD FOLDER CASE...``

A case is ``full-2``, ``lora-3`` or ``offload-2`` (one of KINDS, ZeRO stage). Rank 0 writes the policy after STEPS steps
to FOLDER/CASE.safetensors and, after a resume from the last checkpoint, whether that gave the same weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from learner.engines.zero import join_group
from learner.learner import Learner
from tests.support.learner.fakes import MemoryExchange, brightness, policy_state, tiny_config, tiny_model

STEPS, SAVED = 5, 3
KINDS: dict[str, dict[str, Any]] = {
    "full": {"train": "full"},
    "lora": {"train": "lora"},
    "part": {"train": "full", "trainable": "*.attn1.*"},
    "sharded": {"train": "full", "reference": "sharded"},
    "offload": {"train": "full", "offload_optimizer": True},
    "reward": {"train": "full", "algorithm": {"name": "refl"}},
}
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "micro_batch": 1,
    "algorithm": {"beta": 50.0},
    "weight_decay": 0.01,
    "adam_beta2": 0.95,
    "lr_schedule": "linear",
    "warmup_steps": 1,
}


def main(rank: int, world: int, folder: Path, cases: list[str]) -> None:
    """Train every case in turn."""
    join_group(rank, world, (folder / "meet").as_uri())
    model = tiny_model(folder / "model")
    for case in cases:
        kind, stage = case.split("-")
        config = tiny_config(**SETTINGS | KINDS[kind], zero_stage=int(stage), checkpoint_every=SAVED)
        rewards = brightness if kind == "reward" else None
        groups = MemoryExchange(gap=1.0, kept=1) if rewards else MemoryExchange()
        exchange: Any = groups if rank == 0 else None
        learner = Learner(model, config, folder / case, rewards=rewards)
        learner.resume(exchange)
        states = [_train(learner, exchange)]
        learner.close()
        again = Learner(model, config, folder / case, rewards=rewards)
        resumed = again.resume(exchange)
        states.append(_train(again, exchange))
        again.close()
        if rank == 0:
            first, second = states
            equal = all(first[name].equal(second[name]) for name in first)
            save_file(first, folder / f"{case}.safetensors", {"resumed": json.dumps(resumed and equal)})


def _train(learner: Learner, exchange: Any) -> dict[str, Any]:
    while learner.step < STEPS:
        learner.work(exchange)
    return policy_state(learner)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
