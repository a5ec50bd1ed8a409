"""HTTP clients that use the configured proxy alone, and none of the environment.

HTTP_PROXY and ALL_PROXY are for the internet, while judges and language models are on the same machine or cluster: a
proxy would take their requests elsewhere, or refuse them. What no_proxy excludes differs between programs.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from common.errors import ConfigError


def open_client(name: str, proxy: str, timeout: float, headers: Mapping[str, str]) -> httpx.Client:
    """Returns a client through `proxy`, or a direct one if that is empty. `timeout` in seconds; honours SSL_CERT_FILE.

    Raises `ConfigError` for an invalid `proxy`, which the message calls `name`.
    """
    secure = httpx.create_ssl_context()
    try:
        return httpx.Client(verify=secure, proxy=proxy or None, timeout=timeout, headers=headers, trust_env=False)
    except ImportError:
        raise ConfigError(f"{name} = {proxy!r}: needs a package: pip install httpx[socks]") from None
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"{name} = {proxy!r}: must be http://HOST:PORT or socks5://HOST:PORT: {error}") from None
