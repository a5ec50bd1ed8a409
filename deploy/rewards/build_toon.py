"""``douga toon build``: trains everything that the embedded default stands on, from nothing but the sprites.

```
rendered clips -> VAE -> latents -> text encoder + transformer -> pipeline folder
rendered clips -> VAE or the whole pipeline, H.264 -> six reward heads -> heads folder
```

Every stage is resumable and a function of the seed; the stages' states lie in the work folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from common.models.cogvideox import open_model
from learner import toon_pretrain
from rewarders.checkpoints import save_heads
from rewarders.toon_heads.training.regenerate import SDEditAugmenter
from rewarders.toon_heads.training.train import train_heads

CLIPS = 4000
WEIGHTS = Path(__file__).parents[2] / "common" / "toon" / "weights"


def build(work: Path, out: Path = WEIGHTS, seed: int = 0, log: Callable[[str], None] = print) -> None:
    """Train the toon pipeline and the reward heads; states in `work`, the finished weights in `out`."""
    work.mkdir(parents=True, exist_ok=True)
    build_pipeline(work, out, seed, log)
    build_heads(work, out, seed, log)


def build_pipeline(work: Path, out: Path, seed: int, log: Callable[[str], None]) -> None:
    """VAE, then text encoder and transformer; written as a pipeline folder."""
    log(f"rendering {CLIPS} clips")
    data = toon_pretrain.draw_clips(CLIPS, seed)
    vae = toon_pretrain.train_vae(data, work, seed, log=log)
    whole, figure = toon_pretrain.figure_psnr(vae, toon_pretrain.draw_clips(64, seed + 1))
    log(f"vae: PSNR {whole:.2f} dB, of the figure alone {figure:.2f} dB, on clips not trained on")
    text, transformer = toon_pretrain.train_base(toon_pretrain.encode_clips(vae, data, work), work, seed, log=log)
    shutil.rmtree(out / "pipeline", ignore_errors=True)
    toon_pretrain.save_pipeline(out / "pipeline", vae, text, transformer)


def build_heads(work: Path, out: Path, seed: int, log: Callable[[str], None]) -> None:
    """The six reward heads, trained on clips that look like a policy's, some of them drawn by it."""
    model = SDEditAugmenter(open_model(out / "pipeline"))
    heads = train_heads(work, seed, model.reconstruct, model.regenerate, log)
    shutil.rmtree(out / "heads", ignore_errors=True)
    save_heads(heads, out / "heads")
