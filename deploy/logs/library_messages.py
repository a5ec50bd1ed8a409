"""Messages of libraries that say nothing to the user of a run. Each is dropped by its own rule; all others stay."""

from __future__ import annotations

import logging

MEANINGLESS = {  # logger -> part of its message
    # At every import without the package `kernels`: a faster kernel of 4-bit inference, which douga does not use.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # The list is empty: no module is concerned.
    "diffusers.models.modeling_utils": "should be kept in float32: []",
}


class _Without(logging.Filter):
    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return self._words not in record.getMessage()


_FILTERS = {name: _Without(words) for name, words in MEANINGLESS.items()}


def drop_meaningless() -> None:
    """Drops the messages of `MEANINGLESS` in this process. Call it before the libraries are imported."""
    for name, one in _FILTERS.items():
        logging.getLogger(name).addFilter(one)  # no effect if it is there already
