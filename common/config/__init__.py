"""Every knob of a run, as pydantic models: defaults < TOML file < dotted flags.

```
section.py      what a section is
SECTION.py      one section each: model, sampler, reward, guardrails, exchange, learner, evaluation, cluster, ...
run.py          `RunConfig`: the keys outside of sections, and all sections
loading.py      TOML and flags -> `RunConfig` -> TOML; renamed keys; what differs between two
```

Nothing here imports torch, so that ``douga --help`` answers at once. A wrong key or value raises `ConfigError`, which
names the key, where it stands and what is allowed.
"""

from common.config.cluster import ClusterConfig, Placement
from common.config.guardrails import GuardConfig
from common.config.learner import LearnerConfig, LoraConfig
from common.config.loading import (
    Key,
    differences,
    keys,
    leaves,
    load_config,
    parse_config,
    to_toml,
)
from common.config.model import ModelConfig
from common.config.reward import DIMENSIONS, PRESETS, JudgeConfig, RewardConfig, RewardJudgeConfig
from common.config.run import RunConfig
from common.config.sampler import SamplerConfig
from common.config.section import Section

__all__ = [
    "DIMENSIONS",
    "PRESETS",
    "ClusterConfig",
    "GuardConfig",
    "JudgeConfig",
    "Key",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "Placement",
    "RewardConfig",
    "RewardJudgeConfig",
    "RunConfig",
    "SamplerConfig",
    "Section",
    "differences",
    "keys",
    "leaves",
    "load_config",
    "parse_config",
    "to_toml",
]
