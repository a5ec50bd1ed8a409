"""Reports out-of-memory errors in one line: the role, the requested and free memory, and settings that need less.

```
sampler-0: out of memory: asked for 19.11 GB, 2.31 of 25.39 GB are free of GPU 0; use ...; douga plan ...
```

The settings are those that `douga plan` names. As there, GB are 10⁹ bytes.

A process that the kernel's OOM killer ends leaves no error. But the kernel counts what it killed: a higher count than
before makes it the likely cause, on this machine (`kernel_kills`, `describe_death`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import RunConfig, may_change
from common.errors import RunFailed
from common.errors.oom import Shortage, shortage
from deploy.planning.memory import GIGA
from deploy.planning.plan import CHANGES
from deploy.run_dir.layout import CONFIG

VMSTAT = Path("/proc/vmstat")
LOW = re.compile(r"low on memory|OutOfMemory|memory usage threshold")  # words of Ray's own memory monitor
GONE = "worker process has died"  # Ray saw a connection close, and knows no more
SECTIONS = {"sampler": ("sampler", "model"), "rewarder": ("reward",), "learner": ("learner", "model")}


class OutOfMemory(RunFailed):
    """Error: a role needs more memory than is available. The same command resumes the run from its last checkpoint.

    All units of work of a role need the same memory. A process that fails in its first unit would fail again after a
    restart, so the run ends. If it had `worked` before, the cause is transient (another process on the GPU,
    fragmentation), and it is restarted like a crashed worker.
    """

    worked = False


@contextmanager
def needed_by(worker: str, config: RunConfig | None = None) -> Iterator[None]:
    """Turns out-of-memory errors inside the block into `OutOfMemory`, which names settings of the role that need less.

    Other errors are not changed. No settings are named without `config`, or if `worker` is not a worker's name:
    ``with needed_by("sampler-0", config)``.
    """
    try:
        yield
    except OutOfMemory:
        raise  # an inner block has named the role already
    except Exception as error:
        found = shortage(error)
        if found is None:
            raise
        knobs = "" if config is None else _settings(worker, config)
        raise OutOfMemory(f"{worker}: out of memory: {_figures(found)}{knobs}") from error


def kernel_kills(file: Path = VMSTAT) -> int:
    """Processes that the kernel's OOM killer has ended since this machine booted; 0 if it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", file.read_text("ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def describe_death(worker: str, words: str, config: RunConfig, kills: int) -> str:
    """Why the process of `worker` is gone, in place of Ray's `words`, which are many and name no cause.

    `kills`: processes that the kernel ended for lack of memory meanwhile, on this machine.
    """
    advice = _settings(worker, config)
    if LOW.search(words):
        return f"Ray ended its process because the node ran out of memory{advice}"
    if GONE not in words:
        return words
    if kills:
        return f"its process was killed; meanwhile the kernel's OOM killer ended {kills} on this machine{advice}"
    return (
        "its process was killed (SIGKILL) or crashed, without an error of its own; `dmesg` on its node tells whether "
        f"it was out of memory: if so{advice.replace(';', ',', 1)}"
    )


def _figures(found: Shortage) -> str:
    asked = f"asked for {found.asked / GIGA:.2f} GB, " if found.asked is not None else ""
    if found.free is None or found.total is None:
        return f"{asked}more than is free of {found.where}"
    return f"{asked}{found.free / GIGA:.2f} of {found.total / GIGA:.2f} GB are free of {found.where}"


def _settings(worker: str, config: RunConfig) -> str:
    """Lists the remaining settings in the order to try them, after "; ": for this run, then for a new run."""
    role = worker.partition("-")[0]
    if role not in SECTIONS:
        return ""
    left = [name for name, change in CHANGES if _is_left(name, change, role, config)]
    same = [name for name in left if may_change(name.split(" ")[0], config)]
    other = [name for name in left if name not in same]
    if role != "rewarder":
        other.append("smaller model.frames, height, width")
    words = [f"use {', '.join(same)} and resume the run"] if same else []
    words += [f"in a new run (another --name) use {', '.join(other)}"] if other else []
    return f"; {'; '.join([*words, _plan(config)])}"


def _is_left(name: str, change: Mapping[str, Any], role: str, config: RunConfig) -> bool:
    """Whether a change concerns the role, is not made yet, and has an effect in this configuration."""
    section, rules, on_cpu = name.partition(".")[0], config.learner, config.model.device == "cpu"
    idle = {
        "sampler.offload": on_cpu,
        "learner.offload_optimizer": on_cpu,
        'learner.reference = "host"': on_cpu or rules.train == "lora",
        'learner.gradient_checkpointing = "selective"': rules.gradient_checkpointing == "full" or rules.zero_stage == 3,
        "learner.zero_stage = 3": config.mode == "serial" or config.cluster.learner.count == 1,
    }
    if section not in SECTIONS[role] or idle.get(name, False):
        return False
    now = getattr(config, section)
    return now != now.model_copy(update=change)


def _plan(config: RunConfig) -> str:
    """Names the command that computes the memory; it plans for GPUs, so a CPU device is replaced."""
    kept = config.folder / CONFIG
    device = " --model.device cuda:0" if config.model.device == "cpu" else ""
    return f"douga plan {kept if kept.exists() else 'CONFIG'}{device} computes the memory needed"
