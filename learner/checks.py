"""Checks what the learner needs of configuration, model and machine, before a run folder is made. Loads no weights.

The learner is opened after samplers and rewarders, and in a cluster in another process. What it would refuse then has
to be refused at once: a GPU may have sampled for hours by then.
"""

from __future__ import annotations

from common.config import RunConfig, open_algorithm
from common.models.cogvideox import ModelFolder
from common.models.lora import inject_lora
from common.models.trainable import trained_names
from common.roles import LEARNER
from learner.engines.base import check_divisible
from learner.engines.zero import check_deepspeed, check_offload
from learner.optimizer import check_optimizer


def check_learner(model: ModelFolder, config: RunConfig) -> None:
    """Raises `ConfigError`, as the learner would, for targets, patterns, ranks and packages that do not fit."""
    learner, ranks = config.learner, config.workers_of(LEARNER) if config.mode == "cluster" else 1
    open_algorithm(config.algorithm)
    check_divisible(learner, ranks)
    check_optimizer(learner)
    if learner.zero_stage or ranks > 1:
        check_deepspeed()
        check_offload(learner, config.model.dtype == "bfloat16")
    module = model.empty_transformer(config.model.dtype)
    if learner.train == "lora":
        inject_lora(module, learner.lora, config.seed)
    else:
        trained_names((name for name, _ in module.named_parameters()), learner.trainable)
