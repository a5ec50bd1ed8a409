"""Every knob of a run, as pydantic models: defaults < TOML file < dotted flags.

```
section.py   what a section is
reward.py    [reward], [guard]: heads, judges, weights, guardrails
run.py       all other sections; `RunConfig`
loading.py   TOML and flags -> `RunConfig` -> TOML; every key in words; what differs between two
```

Nothing here imports torch, so that ``douga --help`` answers at once. A wrong key or value raises `ConfigError`, which
names the key, where it stands and what is allowed.
"""

from common.config.loading import (
    Key,
    differences,
    keys,
    leaves,
    load_config,
    parse_config,
    to_toml,
)
from common.config.reward import (
    DIMENSIONS,
    PRESETS,
    GuardConfig,
    JudgeConfig,
    RewardConfig,
    RewardJudgeConfig,
)
from common.config.run import (
    ClusterConfig,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    Placement,
    RunConfig,
    SamplerConfig,
)
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
