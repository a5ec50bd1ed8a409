"""The limit of open files (``ulimit -n``). Sockets count, and a hub has several for each worker."""

from __future__ import annotations

import resource

from common.errors import ConfigError

LEAST, ENOUGH = 512, 65_536  # open files: what a small cluster run needs, and what any run needs


def raise_open_files() -> None:
    """Raises this process's soft limit, which its children inherit, as far as the hard limit allows, up to `ENOUGH`.

    Raises `ConfigError` if the hard limit is below `LEAST`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if wanted < LEAST:
        raise ConfigError(
            f"this machine allows a process {hard} open files, and a cluster run needs {LEAST} or more: raise the hard "
            "limit (ulimit -Hn, or LimitNOFILE of the service or container)"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
