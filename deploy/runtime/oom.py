"""Too little memory ends a run in one line: who asked for how much, what there was, and what makes it less.

```
sampler-0: out of memory: asked for 19.11 GB, 2.31 of 25.39 GB are free of GPU 0; lower it with ...; douga plan ...
```

The knobs are those that `douga plan` names. GB are 10⁹ bytes, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from common.config import RunConfig
from common.errors import RunFailed
from common.errors.oom import Shortage, shortage
from deploy.planning.memory import GIGA
from deploy.planning.plan import CHANGES
from deploy.run_dir.layout import CONFIG, is_free

SECTIONS = {"sampler": ("sampler", "model"), "rewarder": ("reward",), "learner": ("learner", "model")}


class OutOfMemory(RunFailed):
    """A role needs more memory than there is. Nothing is lost: the run goes on from its last checkpoint.

    A role's units of work are all alike, so a process that could not do its first one will not do it when it is
    started again: the run ends. One that had `worked` before met something passing (a neighbour on its GPU,
    fragments), and is started again like one that died.
    """

    worked = False


@contextmanager
def needed_by(who: str, config: RunConfig | None = None) -> Iterator[None]:
    """``with needed_by("sampler-0", config):`` too little memory inside is `OutOfMemory`, which names the role's knobs.

    All other errors pass as they are. Without `config`, or for who is no role, no knobs are named.
    """
    try:
        yield
    except OutOfMemory:
        raise  # said already, of whoever works within
    except Exception as error:
        found = shortage(error)
        if found is None:
            raise
        knobs = "" if config is None else _knobs(who.partition("-")[0], config)
        raise OutOfMemory(f"{who}: out of memory: {_figures(found)}{knobs}") from error


def _figures(found: Shortage) -> str:
    asked = f"asked for {found.asked / GIGA:.2f} GB, " if found.asked is not None else ""
    if found.free is None or found.total is None:
        return f"{asked}more than is free of {found.where}"
    return f"{asked}{found.free / GIGA:.2f} of {found.total / GIGA:.2f} GB are free of {found.where}"


def _knobs(role: str, config: RunConfig) -> str:
    """What is left to change, in the order to try it: in the same run, then in another one."""
    if role not in SECTIONS:
        return ""
    left = [name for name, change in CHANGES if _is_left(name, change, role, config)]
    same = [name for name in left if is_free(name.split(" ")[0], config)]
    other = [name for name in left if name not in same]
    if role != "rewarder":
        other.append("smaller model.frames, height, width")
    words = [f"lower it with {', '.join(same)}, and a run goes on"] if same else []
    words += [f"under another --name with {', '.join(other)}"] if other else []
    return f"; {'; '.join([*words, _plan(config)])}"


def _is_left(name: str, change: Mapping[str, Any], role: str, config: RunConfig) -> bool:
    """Whether a change is the role's, is not made yet, and does something here."""
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
    """The command that computes what the run needs; it is about GPUs."""
    kept = config.folder / CONFIG
    device = " --model.device cuda:0" if config.model.device == "cpu" else ""
    return f"douga plan {kept if kept.exists() else 'CONFIG'}{device} computes the need"
