"""The identity of a prompt by its content: captions with first frames, whatever the rows of a file are called."""

from __future__ import annotations

from common.digests import digest
from common.messages import Prompt


def prompt_key(prompt: Prompt) -> str:
    """A digest of caption and first frame, hex: equal for the same prompt, whatever its id."""
    return digest(prompt.text.encode(), b"\0", prompt.image or b"")
