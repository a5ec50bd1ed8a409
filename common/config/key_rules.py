"""Which keys may change when a run is resumed, and which an external worker may set for its own machine."""

from __future__ import annotations

from common.config.run import RunConfig

# A name that ends with a dot stands for all keys of that section. Paths may change: the model itself is compared.
UNRELATED = (
    "steps", "verify", "name", "root", "mode", "evaluation.", "guardrails.", "cluster.", "metrics.", "logs.",
    "collect.prompts", "model.path", "reward.batch_seconds", "reward.judge_seconds", "exchange.keep_groups",
    "timeline_bytes", "keep_candidates_bytes", "learner.checkpoint_every", "learner.keep_checkpoints",
)  # fmt: skip
# Batching, memory and threads. These change the summation order, hence the last bits, and let a run resume after
# running out of memory.
MEMORY = (
    "threads", "sampler.micro_batch", "sampler.offload", "reward.batch",
    "learner.micro_batch", "learner.gradient_checkpointing", "learner.reference",
)  # fmt: skip
JUDGE = "reward.judges."
SERVER = ("url", "token_file", "proxy", "timeout", "retries")  # of a judge: where it is served

OF_MACHINE = ("model.path", "model.device", "reward.path", "pairs", "candidates", "cluster.threads", "metrics.enabled")
OF_MACHINE_JUDGE = ("path", "url", "token_file")


def may_change(key: str, config: RunConfig) -> bool:
    """Whether a key may differ between a run and the configuration that resumes it."""
    if key == "sampler.micro_batch" and config.sampler.cache_threshold > 0:
        return False  # the cache decides per micro-batch which blocks to skip, so its size changes the clips
    if key == "steps" and config.learner.rate_depends_on_steps:
        return False  # the steps that were taken would have had other learning rates
    if _of_judge(key, SERVER):
        return True  # if the server reports another digest, groups in flight are rescored
    return any(key == one or (one.endswith(".") and key.startswith(one)) for one in UNRELATED + MEMORY)


def may_change_text(config: RunConfig) -> str:
    """The keys of `may_change`, for messages and help."""
    free, memory = ([one for one in keys if may_change(one, config)] for keys in (UNRELATED, MEMORY))
    named = [f"{one}*" if one.endswith(".") else one for one in free]
    return ", ".join([*named, *(f"{JUDGE}NAME.{one}" for one in SERVER), *memory])


def is_of_machine(key: str) -> bool:
    """Whether an external worker may set a key, because it differs between machines."""
    return key in OF_MACHINE or _of_judge(key, OF_MACHINE_JUDGE)


def of_machine_text() -> str:
    """The keys of `is_of_machine`, for messages and help."""
    return ", ".join([*OF_MACHINE, *(f"{JUDGE}NAME.{one}" for one in OF_MACHINE_JUDGE)])


def _of_judge(key: str, names: tuple[str, ...]) -> bool:
    return key.startswith(JUDGE) and key.count(".") == 3 and key.rpartition(".")[2] in names
