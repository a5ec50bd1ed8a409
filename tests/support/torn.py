"""Takes weights out of a saved model's files, as a truncated or converted checkpoint lacks them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def without(folder: str | Path, *names: str) -> None:
    """Rewrites the folder's only safetensors file without the weights `names`, which it must have."""
    (file,) = Path(folder).glob("*.safetensors")
    weights = load_file(file)
    for name in names:
        del weights[name]
    save_file(weights, file, {"format": "pt"})
