"""Opens the judges of a configuration.

A kind is a class constructed as ``Class(judge: JudgeConfig, device: str)`` that implements `rewarders.interface.Reward`
or `Judge`. It may declare the clips that it needs in an attribute ``needs`` (`InputSpec`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.config import JudgeConfig, RewardConfig
from common.errors import ConfigError, RunFailed, StorageError
from common.errors.oom import reraise_oom
from common.errors.places import describe_error
from rewarders.head_files import load_heads
from rewarders.interface import Judge, Reward, as_judge
from rewarders.judges.adapter import AdaptedJudge, NamedJudge
from rewarders.judging.thread import JUDGES, in_process
from rewarders.kinds import class_of

REWARD_JUDGES = "reward.judges"
KINDS = {
    "remote": "rewarders.judges.remote:RemoteJudge",
    "clip_score": "rewarders.judges.image_rewards:ClipScore",
    "hps": "rewarders.judges.image_rewards:Hps",
    "aesthetic": "rewarders.judges.image_rewards:Aesthetic",
    "image_reward": "rewarders.judges.image_rewards:ImageReward",
    "videoscore": "rewarders.judges.videoscore:VideoScore",
    "videoreward": "rewarders.judges.videoreward:VideoReward",
    "frame_ssim": "rewarders.judges.pixel_metrics:FrameSsim",
    "frame_mse": "rewarders.judges.pixel_metrics:FrameMse",
    "temporal_flicker": "rewarders.judges.pixel_metrics:TemporalFlicker",
    "warp_error": "rewarders.judges.flow_metrics:WarpError",
    "flow_magnitude": "rewarders.judges.flow_metrics:FlowMagnitude",
    "subject_consistency": "rewarders.judges.frame_features:SubjectConsistency",
    "background_consistency": "rewarders.judges.frame_features:BackgroundConsistency",
    "i2v_subject": "rewarders.judges.frame_features:I2vSubject",
    "dynamic_degree": "rewarders.judges.dynamic_degree:DynamicDegree",
}


def open_rewards(config: RewardConfig, device: str = "cpu") -> list[Reward | Judge]:
    """Returns the heads of ``reward.path`` and all of ``reward.judges``. Raises `ConfigError` for missing or damaged
    ones."""
    heads = load_heads(config.path, device) if config.path else []
    return [*heads, *open_judges(config.judges, device, seconds=config.judge_seconds)]


def open_judges(
    configs: Mapping[str, JudgeConfig], device: str = "cpu", table: str = REWARD_JUDGES, seconds: float = math.inf
) -> list[Judge]:
    """Returns the judges of a configuration's `table`, each under its name. `seconds` bounds the time of each."""
    return [NamedJudge(name, open_judge(name, judge, device, table, seconds)) for name, judge in configs.items()]


def class_of_judge(name: str, config: JudgeConfig, table: str = REWARD_JUDGES) -> type:
    """The class of a judge's kind. Raises `ConfigError`, which begins with `table`.`name`."""
    try:
        return class_of(config.kind, KINDS)
    except ConfigError as error:
        raise ConfigError(f"{table}.{name}: {error}") from None


def open_judge(
    name: str, config: JudgeConfig, device: str = "cpu", table: str = REWARD_JUDGES, seconds: float = math.inf
) -> Judge:
    """Opens one judge, wrapped so that its input is adapted and its values are 0..100. Its outputs have no prefix.
    Errors begin with `table`.`name`. Raises `JudgeHangsError` after `seconds`."""
    return JUDGES.call(f"{table}.{name}: opening", lambda: _open(name, config, device, table), seconds)


def _open(name: str, config: JudgeConfig, device: str, table: str) -> Judge:
    kind = class_of_judge(name, config, table)
    try:
        if config.options and config.kind in KINDS:
            raise ConfigError(f"options: kind {config.kind!r} takes none; they are for classes of your own")
        made = kind(config, device)
        if not isinstance(made, Judge) and not (hasattr(made, "score") and hasattr(made, "dimension")):
            raise ConfigError(f"kind = {config.kind!r}: must be a Reward or a Judge (rewarders/interface.py)")
        if not hasattr(made, "digest"):
            raise ConfigError(f"kind = {config.kind!r}: has no digest, which every Reward and Judge needs")
        judge = AdaptedJudge(as_judge(made), config, getattr(made, "needs", None))
        _check_names(judge)
        return judge
    except ConfigError as error:
        raise ConfigError(f"{table}.{name}: {error}") from error.__cause__
    except (RunFailed, StorageError):
        raise
    except (Exception, SystemExit) as error:  # a user's own constructor or properties
        error = in_process(error)
        reraise_oom(error)
        raise ConfigError(f"{table}.{name}: kind = {config.kind!r}: {describe_error(error)}") from error


def _check_names(judge: Judge) -> None:
    """Raises `ConfigError` unless a judge's outputs are distinct names."""
    outputs = list(judge.outputs)
    if not outputs or len(set(outputs)) < len(outputs) or not all(isinstance(one, str) and one for one in outputs):
        raise ConfigError(f"outputs = {outputs!r:.100}: must be distinct names, at least one")
