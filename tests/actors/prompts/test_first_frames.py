"""First frames by a text-to-image pipeline: which images are made, when, and from which models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, WuerstchenCombinedPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from actors.prompts.first_frames import first_frames
from actors.prompts.source import FilePrompts
from actors.prompts.text_to_image import ImageSettings, call_options
from common.errors import ConfigError
from common.seeds import candidate_seed
from tests.support.tiny import tiny_pipeline
from tests.support.tiny_text_to_image import OWN_SIZE, tiny_text_to_image

SETTINGS = ImageSettings(height=48, width=64, steps=2, guidance=3.0)
CAPTIONS = [
    {"id": "people/smile 1", "prompt": "a woman smiles", "category": "smile", "mine": [1, None]},
    {"prompt": "a man läuft "},
    {"prompt": "a woman smiles", "split": "heldout", "image": ""},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_to_image(tmp_path_factory.mktemp("model"))


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write(tmp_path / "captions.jsonl", CAPTIONS)


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def make(
    file: Path, model: Path, out: Path, settings: ImageSettings = SETTINGS, seed: int = 0
) -> tuple[list[str], list[str]]:
    """The images that the rows name, and the lines of progress."""
    lines: list[str] = []
    table = first_frames(file, model, out, settings, lines.append, seed)
    return [row["image"] for row in read(table)], lines


# What is made.


def test_every_row_gets_an_image_and_keeps_its_columns(captions: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    images, lines = make(captions, model, out)
    rows = read(out / "prompts.jsonl")
    ids = ["people/smile 1", "captions-2", "captions-3"]
    assert rows == [row | {"id": i, "image": one} for row, i, one in zip(CAPTIONS, ids, images, strict=True)]
    assert sorted(images) == sorted(f"images/{file.name}" for file in (out / "images").iterdir())
    assert len(set(images)) == 3  # two rows share a caption, none its image
    assert lines == ["1/3 first frames", "2/3 first frames", "3/3 first frames"]
    source = FilePrompts(out / "prompts.jsonl", seed=0)
    assert {source(0).id, source(1).id} == set(ids[:2])
    assert source.heldout(1, 0)[0].image == (out / images[2]).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_image_is_what_the_pipeline_makes_of_the_rows_seed(
    captions: Path, model: Path, tmp_path: Path, dtype: str
) -> None:
    images, _ = make(captions, model, tmp_path / "out", replace(SETTINGS, dtype=dtype), seed=5)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(model).to(getattr(torch, dtype))  # type: ignore[union-attr]
    for row, prompt in enumerate(["a woman smiles", "a man läuft", "a woman smiles"]):
        noise = torch.Generator().manual_seed(candidate_seed(5, "first frame", row, 0))
        sizes = {"height": 48, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
        expected = pipeline(prompt, generator=noise, **sizes).images[0]
        made = Image.open(tmp_path / "out" / images[row])
        assert (made.mode, made.size) == ("RGB", (64, 48))
        assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_a_csv_file_with_some_images_keeps_them(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mine" / "red.png")
    file = tmp_path / "mine" / "captions.csv"
    file.write_text("prompt,image,note\na dog,red.png,x\na cat,,y\n")
    images, lines = make(file, model, tmp_path / "out")
    assert images[0] == "../mine/red.png"
    assert lines == ["1/1 first frames"]
    assert [row["note"] for row in read(tmp_path / "out" / "prompts.jsonl")] == ["x", "y"]
    assert FilePrompts(tmp_path / "out" / "prompts.jsonl", seed=0).training_prompts == 2
    file.write_text("prompt,image\na dog,blue.png\n")
    with pytest.raises(ConfigError, match=r"captions\.csv:2: no image .*blue\.png"):
        make(file, model, tmp_path / "out")


def test_a_size_that_the_pipeline_refuses_gives_its_own(captions: Path, model: Path, tmp_path: Path) -> None:
    images, lines = make(captions, model, tmp_path / "out", ImageSettings(height=50, width=63, steps=1))
    assert {Image.open(tmp_path / "out" / image).size for image in images} == {(OWN_SIZE, OWN_SIZE)}
    assert len(lines) == 4
    assert "divisible by 8" in lines[0]
    assert "making images of the pipeline's own size" in lines[0]


# Resuming.


def test_only_missing_images_are_made_again(captions: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    images, _ = make(captions, model, out)
    content = (out / images[1]).read_bytes()
    (out / images[1]).unlink()
    (out / images[0]).write_bytes(b"untouched")
    assert make(captions, model, out) == (images, ["1/1 first frames"])
    assert (out / images[1]).read_bytes() == content
    assert (out / images[0]).read_bytes() == b"untouched"
    assert make(captions, model, out) == (images, [])


def test_a_changed_caption_gets_a_new_image(captions: Path, model: Path, tmp_path: Path) -> None:
    images, _ = make(captions, model, tmp_path / "out")
    write(captions, [CAPTIONS[0], CAPTIONS[1] | {"prompt": "a man walks"}, CAPTIONS[2]])
    changed, lines = make(captions, model, tmp_path / "out")
    assert [old == new for old, new in zip(images, changed, strict=True)] == [True, False, True]
    assert lines == ["1/1 first frames"]


def test_another_model_seed_or_setting_gives_new_images(captions: Path, model: Path, tmp_path: Path) -> None:
    other = tiny_text_to_image(tmp_path / "other", seed=1)
    copy = shutil.copytree(model, tmp_path / "copy")
    first, _ = make(captions, model, tmp_path / "out")
    seen = set(first)
    same: dict[str, Any] = {"file": captions, "model": model, "out": tmp_path / "out"}
    changes: tuple[dict[str, Any], ...] = (
        {"model": other},
        {"seed": 1},
        {"settings": ImageSettings(48, 64, 1, 3.0)},
        {"settings": ImageSettings(48, 64, 2, 3.5)},
        {"settings": ImageSettings(64, 48, 2, 3.0)},
        {"settings": ImageSettings(48, 64, 2, 3.0, "bfloat16")},
    )
    for changed in changes:
        images, lines = make(**same | changed)
        assert len(lines) == 3
        assert not seen & set(images)
        seen |= set(images)
    assert make(captions, copy, tmp_path / "out") == (first, [])  # the folder's name does not matter


# Bad input.


def drop_weight(part: Path) -> str:
    (file,) = part.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "safety_checker"])
def test_a_component_without_a_weight_is_refused(captions: Path, tmp_path: Path, part: str) -> None:
    model = tiny_text_to_image(tmp_path / "model", refuses_all=True)
    name = drop_weight(model / part)
    with pytest.raises(ConfigError, match=rf"{part}: not a complete \w+: weights missing: {name}"):
        make(captions, model, tmp_path / "out")


def test_pickled_weights_are_refused(captions: Path, model: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(model, tmp_path / "bad")
    (file,) = (bad / "unet").glob("*.safetensors")
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(ConfigError, match=r"unet: cannot be loaded as UNet2DConditionModel: .*safetensors"):
        make(captions, bad, tmp_path / "out")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "not the index of a pipeline"),
        ("{}", "not the index of a pipeline"),
        ('{"_class_name": ["mine", "Pipeline"]}', "names code of its own"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["mine"]}', "names code of its own"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["mine", "UNet"]}', r"unet is a mine\.UNet, not a class"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["os", "PathLike"]}', r"unet is a os\.PathLike, not"),
        ('{"_class_name": "NoPipeline"}', "cannot be loaded as a text-to-image pipeline"),
    ],
)
def test_a_bad_index_is_one_line(captions: Path, model: Path, tmp_path: Path, index: str, message: str) -> None:
    bad = shutil.copytree(model, tmp_path / "bad")
    (bad / "model_index.json").write_text(index)
    with pytest.raises(ConfigError, match=message):
        make(captions, bad, tmp_path / "out")


def test_only_text_to_image_pipelines_are_used(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be loaded as a text-to-image pipeline: .*CogVideoX"):
        make(captions, tiny_pipeline(tmp_path / "video"), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"nowhere: not a pipeline folder: no model_index\.json in it"):
        make(captions, tmp_path / "nowhere", tmp_path / "out")


def test_images_that_the_safety_checker_blacked_out_are_not_used(captions: Path, tmp_path: Path) -> None:
    model = tiny_text_to_image(tmp_path / "model", refuses_all=True)
    with pytest.raises(ConfigError, match=r"captions\.jsonl:1, .*:2, .*:3: the model's safety checker blacked out"):
        make(captions, model, tmp_path / "out")
    assert list((tmp_path / "out" / "images").iterdir()) == []
    assert not (tmp_path / "out" / "prompts.jsonl").exists()


def test_the_prompt_file_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.jsonl", CAPTIONS)
    with pytest.raises(ConfigError, match="would be overwritten; choose another --out"):
        make(file, model, tmp_path)
    assert read(file) == CAPTIONS


def test_bad_options_are_one_line(captions: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steps 0: must be at least 1"):
        ImageSettings(steps=0)
    with pytest.raises(ConfigError, match="--guidance nan: must be finite, and at least 0"):
        ImageSettings(guidance=float("nan"))
    with pytest.raises(ConfigError, match="--device nope: cannot be used"):
        first_frames(captions, model, tmp_path / "out", SETTINGS, print, device="nope")
    with pytest.raises(ConfigError, match=r"--guidance 3\.0: WuerstchenCombinedPipeline takes no guidance_scale"):
        call_options(WuerstchenCombinedPipeline, SETTINGS)
