"""What tells content apart, and damaged content from sound: XXH3 with 128 bits, over blobs and published tensors.

It guards against accidents: a flipped bit, a torn write, a wrong file. Against people it guards nothing, and need not:
who may write a run's messages or files can give them the right digest as well (`docs/security.md`). A cryptographic
hash would take ten times the time, for every byte that passes.
"""

from __future__ import annotations

from xxhash import xxh3_128

Digest = xxh3_128  # `.update(bytes-like)`, `.hexdigest()`; large data is hashed without the interpreter's lock
DIGITS = 32  # hex digits of one


def digest(*parts: bytes | memoryview) -> str:
    """Hex, of all parts as if they were one."""
    whole = Digest()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()
