"""The page on models: its script samples a clip of `douga sample` with diffusers, bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from common.data.video import encode_mp4
from deploy.cli.main import main
from tests.support.tiny import FAMILIES, FRAMES, HEIGHT, WIDTH, tiny_pipeline

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SCRIPT = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
RECORDED = {"dtype": "float32", "frames": FRAMES, "height": HEIGHT, "width": WIDTH, "fps": 8, "steps": 4}


def sampled(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str, **model: Any) -> dict[str, Any]:
    """Sample one clip of a tiny model into `folder`/samples. Returns its record."""
    monkeypatch.chdir(folder)
    tiny_pipeline(folder / "model", posterior_logvar=None, perturb=0.1, **model)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    Image.fromarray(pixels).save("first.png")
    Path("prompts.jsonl").write_text(json.dumps({"image": "first.png", "prompt": "a robot walks right"}))
    command = ["sample", "model", "--prompts", "prompts.jsonl", "--out", "samples", "--sampler.steps", "4"]
    assert main([*command, *more]) == 0
    return json.loads(Path("samples/samples.json").read_text())[0]


def run_script(monkeypatch: pytest.MonkeyPatch, script: str = SCRIPT) -> bytes:
    """The frames of the page's script, as douga encodes clips."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.sample)  # restored later
    names: dict[str, Any] = {}
    exec(script, names)
    return encode_mp4(np.stack([np.asarray(frame) for frame in names["frames"]]), names["made"]["fps"])


def test_the_script_has_twelve_lines() -> None:
    assert len([line for line in SCRIPT.splitlines() if line]) == 12


@pytest.mark.parametrize("family", ["5B-I2V", "1.5-5B-I2V"])
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--sampler.guidance", "6"),
        ("--sampler.guidance", "6", "--sampler.dynamic-guidance", "on"),
        ("--sampler.guidance", "3", "--sampler.scheduler", "ddim"),
    ],
    ids=["plain", "guidance", "dynamic", "ddim"],
)
def test_the_script_samples_the_same_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, more: tuple[str, ...]
) -> None:
    made = sampled(tmp_path, monkeypatch, *more, **FAMILIES[family])
    assert run_script(monkeypatch) == (tmp_path / "samples" / made["clip"]).read_bytes()


def test_each_of_the_three_differences_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampled(tmp_path, monkeypatch, "--sampler.guidance", "6", **FAMILIES["5B-I2V"])
    clip = (tmp_path / "samples" / made["clip"]).read_bytes()
    for ours, plain in (
        ("self.mode())[1]", "self.mode())[0]"),
        ('"samples/" + made["image"]', '"first.png"'),
        ('made["dynamic_guidance"]', "True"),
    ):
        with monkeypatch.context() as restored:
            assert ours in SCRIPT
            assert run_script(restored, SCRIPT.replace(ours, plain)) != clip


def test_a_record_says_what_its_clip_is_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sampled(tmp_path, monkeypatch, "--sampler.guidance", "2.5", "--sampler.scheduler", "ddim")
    settings = {"model": str(tmp_path / "model"), "guidance": 2.5, "scheduler": "ddim", "dynamic_guidance": False}
    assert made | RECORDED | settings == made
