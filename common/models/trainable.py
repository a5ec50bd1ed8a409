"""Which parameters of the transformer full training changes (`learner.trainable`). Imports no torch.

| patterns | trained |
|---|---|
| `*` | everything (default) |
| `transformer_blocks.*` | the blocks, without embeddings and output layers |
| `*.attn1.*` | attention only. HuViDPO's first stage trains the attention and temporal layers of a U-Net; CogVideoX's |
| | attention covers space and time in one, and there are no other temporal layers |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from common.errors import ConfigError


def trained_names(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The parameter `names` that match at least one of the glob `patterns`; `*` matches dots too.

    Raises:
        ConfigError: a pattern matches no name.
    """
    names, chosen = list(names), set[str]()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ConfigError(
                f"learner.trainable = {pattern!r}: no parameter has a name like this; "
                "examples are '*', 'transformer_blocks.*' and '*.attn1.*'"
            )
        chosen |= found
    return chosen
