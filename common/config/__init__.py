"""The configuration of a run, as pydantic models. Flags override the TOML file, which overrides the defaults.

```
section.py   base class of a section
algorithm.py [algorithm]: its keys are those of the algorithm that it names
reward.py    [reward], [guard]: heads, judges, weights, guardrails
run.py       all other sections; `RunConfig`
loading.py   TOML and flags -> `RunConfig` -> TOML; the list of all keys; diff of two configurations
```

Nothing here imports torch, so ``douga --help`` is fast. A wrong key or value raises `ConfigError`, which names the key,
the file or flag it came from, and the allowed values.
"""

from common.config.algorithm import AlgorithmConfig, algorithm_class, open_algorithm
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
from common.config.run import ClusterConfig, LearnerConfig, LoraConfig, ModelConfig, RunConfig, SamplerConfig
from common.config.section import Section

__all__ = [
    "DIMENSIONS",
    "PRESETS",
    "AlgorithmConfig",
    "ClusterConfig",
    "GuardConfig",
    "JudgeConfig",
    "Key",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "RewardConfig",
    "RewardJudgeConfig",
    "RunConfig",
    "SamplerConfig",
    "Section",
    "algorithm_class",
    "differences",
    "keys",
    "leaves",
    "load_config",
    "open_algorithm",
    "parse_config",
    "to_toml",
]
