"""The configuration of a run, as pydantic models. Flags override the TOML file, which overrides the defaults.

```
section.py      base class of a section
algorithm.py    [algorithm]: its keys are those of the algorithm that it names
SECTION.py      one section each: model, sampler, reward, guardrails, exchange, learner, evaluation, cluster, ...
run.py          `RunConfig`: the keys outside of sections, and all sections
key_rules.py    which keys may change on resume, and which a worker on another machine may set
loading.py      TOML and flags -> `RunConfig` -> TOML; renamed keys; diff of two configurations
```

To add a key, add a field with a description to its section; if it may change on resume, list it in `key_rules.py`. Then
run ``python -m docs.generate``. A renamed key goes into the table of `loading.py`, so that old files get its new name.
Nothing here imports torch, so ``douga --help`` is fast. A wrong key or value raises `ConfigError`, which names the key,
the file or flag it came from, and the allowed values.
"""

from common.config.algorithm import AlgorithmConfig, algorithm_class, open_algorithm
from common.config.cluster import ClusterConfig, Placement
from common.config.evaluation import SetMetricConfig
from common.config.guardrails import GuardrailsConfig
from common.config.key_rules import is_of_machine, may_change, may_change_text, of_machine_text
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
    "AlgorithmConfig",
    "ClusterConfig",
    "GuardrailsConfig",
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
    "SetMetricConfig",
    "algorithm_class",
    "differences",
    "is_of_machine",
    "keys",
    "leaves",
    "load_config",
    "may_change",
    "may_change_text",
    "of_machine_text",
    "open_algorithm",
    "parse_config",
    "to_toml",
]
