"""Size and speed of the differences between weights in training: ``python -m benchmarks.weights.delta``

```
a layer of CogVideoX-5B's widths, bfloat16 ── AdamW, lr 5e-6 ──> step 10 ── step 11 ──> step 20
                                                                    └─ 1 step ─┘           │
                                                                    └────── 10 steps ──────┘
```

The weights are normal with standard deviation 0.02, as CogVideoX's training begins, or have diffusers' initialization,
about 0.01; published ones are not at hand. The smaller a weight, the finer bfloat16 resolves it, and the more of its
steps show. The loss is the v error of random latents, whose gradients are noise, and the steps begin after ten others,
for the first steps of AdamW are larger.

The factor is bytes of the version / bytes of its difference. Other is deflate (zlib, level 1) of the XOR; limit is the
entropy of the words' steps, taken as independent. Speeds are bytes of the version per second of processor time.
"""

from __future__ import annotations

import time
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from benchmarks import harness
from benchmarks.harness import Aim, Report, Row
from benchmarks.random_models import random_model
from common.config import LearnerConfig
from common.weights.delta import BLOCK, decode_block, encode_block
from common.weights.delta_store import mapped
from common.weights.store import WeightStore
from common.weights.tensor_file import TensorStream
from learner.engines.single import SingleEngine

FAMILY, LR = "5b-i2v", 5e-6
WARM, STEPS = 10, 10
FRAMES, HEIGHT, WIDTH, TEXT = 3, 8, 12, 32  # latents of a clip; tokens of a caption
SPEED = "GB/s a core"


@dataclass(frozen=True)
class Scale:
    """How the weights are drawn."""

    name: str
    std: float | None  # None: diffusers' initialization


SCALES = (Scale("normal weights of 0.02", 0.02), Scale("diffusers' initial weights", None))


def trained(folder: Path, scale: Scale, changes: dict[str, Any]) -> WeightStore:
    """A store with the weights after `WARM`, `WARM` + 1 and `WARM` + `STEPS` steps."""
    settings = {"num_layers": 1, "use_learned_positional_embeddings": False} | changes
    made = random_model(FAMILY, {"transformer": settings})
    module: Any = made.load_transformer("bfloat16", "cpu").requires_grad_(True)
    draw = torch.Generator().manual_seed(0)
    if scale.std is not None:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(scale.std * torch.randn(parameter.shape, generator=draw))
    store, engine = WeightStore(folder), SingleEngine(module, LearnerConfig(lr=LR))
    _spread_masters(engine, draw)
    for step in range(1, WARM + STEPS + 1):
        engine.step([lambda: _v_error(module, draw)], LR)
        if step in (WARM, WARM + 1, WARM + STEPS):
            stream = TensorStream.of(dict(module.named_parameters()))
            store.publish(stream, version=step, step=step, pushes=step, kind="full", base=step)
    engine.close()
    return store


def _spread_masters(engine: SingleEngine, draw: torch.Generator) -> None:
    """Move the masters within their rounding, where training leaves them; a model starts on the rounded values."""
    with torch.no_grad():
        for parameter, master in zip(engine.module.parameters(), engine._copies, strict=True):
            size = parameter.abs()
            unit = torch.nextafter(size, torch.full_like(size, torch.inf)).float() - size.float()
            master.add_(0.99 * unit * (torch.rand(master.shape, generator=draw) - 0.5))


def _v_error(module: Any, draw: torch.Generator) -> torch.Tensor:
    size, half, cpu = module.config, (HEIGHT // 2, WIDTH // 2), torch.device("cpu")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    found = module(
        normal(1, FRAMES, size.in_channels, HEIGHT, WIDTH).bfloat16(),
        normal(1, TEXT, size.text_embed_dim).bfloat16(),
        torch.randint(0, 1000, (1,), generator=draw),
        image_rotary_emb=get_3d_rotary_pos_embed(size.attention_head_dim, ((0, 0), half), half, FRAMES, device=cpu),
        return_dict=False,
    )[0]
    return (found.float() - normal(*found.shape)).square().mean()


@dataclass(frozen=True)
class Coded:
    """A difference: sizes in bytes, and seconds of processor time."""

    whole: int
    ours: int
    other: int
    entropy: float  # bytes
    moved: float  # share of the words
    encoding: float
    decoding: float


def coded(new: memoryview, old: memoryview) -> Coded:
    """Code and decode a file block by block, in one thread. Checks that it comes back."""
    ours = other = 0
    encoding = decoding = 0.0
    for start in range(0, len(new), BLOCK):
        mine, before = new[start : start + BLOCK], old[start : start + BLOCK]
        seconds, block = _timed(lambda mine=mine, before=before: encode_block(mine, before))
        encoding, ours = encoding + seconds, ours + len(block)
        seconds, back = _timed(lambda block=block, before=before: decode_block(block, before))
        decoding += seconds
        if back != mine:
            raise RuntimeError(f"the block at {start} did not come back")
        other += len(_deflated_xor(mine, before))
    counts = np.bincount(_words(new) - _words(old), minlength=1 << 16)
    share = counts[counts > 0] / counts.sum()
    entropy = -float((share * np.log2(share)).sum()) * counts.sum() / 8
    return Coded(len(new), ours, other, entropy, 1 - counts[0] / counts.sum(), encoding, decoding)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.thread_time()
    found = work()
    return time.thread_time() - began, found


def _words(data: memoryview) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.frombuffer(data[: len(data) // 2 * 2], np.uint16)


def _deflated_xor(new: memoryview, old: memoryview) -> bytes:
    return zlib.compress((np.frombuffer(new, np.uint8) ^ np.frombuffer(old, np.uint8)).data, 1)


def rows_of(scale: Scale, store: WeightStore) -> Iterator[tuple[Row, Aim | None]]:
    """The rows of one scale, each with its target."""
    for steps in (1, STEPS):
        found = coded(mapped(store.file(WARM + steps)), mapped(store.file(WARM)))
        case = f"{scale.name}, {steps} step{'s' * (steps > 1)}"
        ours, other = found.whole / found.ours, found.whole / found.other
        shown = f"{case}, {100 * found.moved:.0f} % of the weights moved: factor; other: deflated XOR; limit: entropy"
        yield (
            Row(shown, "times", ours, other, found.whole / found.entropy, harness.ratio([ours], [other])),
            Aim(f"{case}: factor", ours, ">= 10", ours >= 10) if steps == STEPS else None,
        )
        for name, seconds in (("coding", found.encoding), ("decoding", found.decoding)):
            speed = found.whole / seconds / 1e9
            aim = Aim(f"{case}: {name}, {SPEED}", speed, "> 2", speed > 2) if steps == STEPS else None
            yield Row(f"{case}: {name}", SPEED, speed), aim


def measure(scales: Sequence[Scale] = SCALES, changes: dict[str, Any] | None = None) -> Report:
    """Measure every scale. `changes` overrides keys of the transformer's configuration."""
    found: list[tuple[Row, Aim | None]] = []
    for scale in scales:
        with TemporaryDirectory() as folder:
            found += rows_of(scale, trained(Path(folder), scale, changes or {}))
    aims = [aim for _, aim in found if aim is not None]
    packages = ["torch", "numpy", "diffusers"]
    return Report("delta", [row for row, _ in found], aims, packages, package="benchmarks.weights")


def main() -> None:
    """See `benchmarks.harness.main`."""

    def run(given: Namespace) -> Report:
        del given
        return measure()

    harness.main(__doc__, run)


if __name__ == "__main__":
    main()
