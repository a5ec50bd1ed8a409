"""The number of CPU threads of a run. It decides the order in which torch adds numbers, hence the last bits.

```
serial     threads, else the number in RUN/config.toml, else torch's own (OMP_NUM_THREADS)  ──> RUN/config.toml
cluster    cluster.threads in every process, whatever the environment says
```

So a run that is resumed from a shell with another OMP_NUM_THREADS still ends in bit-identical weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.config import RunConfig, load_config
from deploy.run_dir.layout import CONFIG


@contextmanager
def threads_kept(config: RunConfig, notify: Callable[[str], None]) -> Iterator[RunConfig]:
    """Sets torch's threads for a serial run in this process. Yields the configuration with their number.

    Restores the previous number afterwards. Tells `notify` if there are fewer cores.
    """
    if config.simulate:
        yield config
        return
    import torch  # noqa: PLC0415 - simulated work does not need torch

    before = torch.get_num_threads()
    threads = config.threads or _recorded(config) or before
    cores = len(os.sched_getaffinity(0))
    if threads > max(cores, before):
        notify(
            f"{threads} CPU threads on {cores} cores: slow; --threads {cores} is faster, but "
            "changes the last bits of the weights"
        )
    torch.set_num_threads(threads)  # also if it is the same: it overrides MKL_NUM_THREADS
    try:
        yield config.model_copy(update={"threads": threads})
    finally:
        torch.set_num_threads(before)


def set_worker_threads(config: RunConfig) -> None:
    """Sets torch's threads in a process of a cluster run."""
    if not config.simulate:
        import torch  # noqa: PLC0415 - simulated work does not need torch

        torch.set_num_threads(config.cluster.threads)


def _recorded(config: RunConfig) -> int:
    """The number that the run began with; 0 for a new run, and for one that only ran as a cluster."""
    file = config.folder / CONFIG
    return load_config(file).threads if file.is_file() else 0
