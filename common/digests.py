"""Content digests of blobs and published tensors: XXH3 with 128 bits.

They detect accidents: a flipped bit, a torn write, a wrong file. They do not detect tampering, and need not: anyone who
can write a run's messages or files can also write matching digests (`docs/security.md`). A cryptographic hash would be
ten times slower, on every byte that is sent or stored.
"""

from __future__ import annotations

from xxhash import xxh3_128

Digest = xxh3_128  # `.update(bytes-like)`, `.hexdigest()`; releases the GIL for large data
DIGITS = 32  # length of a hex digest


def digest(*parts: bytes | memoryview) -> str:
    """The hex digest of the concatenated parts."""
    whole = Digest()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()
