"""Prompt sources: the order of a file, its splits, its errors, and the first frames."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.prompts.repetitions import repetitions
from actors.prompts.source import FilePrompts, file_prompts, open_prompts
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Purpose
from common.toon.prompts import ToonPrompts


def picture(path: Path, height: int = 6, width: int = 8, value: int = 90) -> Path:
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def jsonl(folder: Path, *rows: dict | str) -> Path:
    picture(folder / "a.png")
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def numbered(folder: Path, count: int, **more: str) -> Path:
    return jsonl(folder, *({"image": "a.png", "prompt": f"text {i}", **more} for i in range(1, count + 1)))


def test_a_file_is_endless_and_shuffled_per_epoch(tmp_path: Path) -> None:
    source = FilePrompts(numbered(tmp_path, 6), seed=3)
    prompts = [source(ordinal) for ordinal in range(12)]
    assert [prompt.ordinal for prompt in prompts] == list(range(12))
    first, second = [prompt.text for prompt in prompts[:6]], [prompt.text for prompt in prompts[6:]]
    assert sorted(first) == sorted(second) == [f"text {i}" for i in range(1, 7)]
    assert first != second
    again, other = FilePrompts(tmp_path / "prompts.jsonl", 3), FilePrompts(tmp_path / "prompts.jsonl", 4)
    assert again(11) == prompts[11]
    assert [other(i).text for i in range(6)] != first


def test_the_image_is_converted_to_png(tmp_path: Path) -> None:
    source = FilePrompts(numbered(tmp_path, 1), seed=0, size=(6, 8))
    assert source(0).image == (tmp_path / "a.png").read_bytes()
    picture(tmp_path / "b.jpg", value=200)
    source = FilePrompts(jsonl(tmp_path, {"image": "b.jpg", "prompt": "x"}), seed=0, size=(6, 8))
    image = source(0).image
    assert image is not None
    assert np.abs(np.asarray(Image.open(io.BytesIO(image)), int) - 200).max() <= 2


def test_columns(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = tmp_path / "shots.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "prompt", "id", "character", "category", "split"])
        writer.writerow(["a.png", "a robot, and a zombie", "one", "robot", "walk", "train"])
        writer.writerow(["a.png", "a zombie", "", "", "", "heldout"])
    source = FilePrompts(file, seed=0)
    prompt = source(0)
    assert (prompt.id, prompt.text, prompt.character, prompt.category) == (
        "one",
        "a robot, and a zombie",
        "robot",
        "walk",
    )
    (held,) = source.heldout(1, seed=0)
    assert (held.id, held.character, held.purpose, held.ordinal) == ("shots-3", None, Purpose.EVAL, 0)


def test_every_tenth_prompt_of_twenty_is_held_out(tmp_path: Path) -> None:
    source = FilePrompts(numbered(tmp_path, 20), seed=0)
    assert {prompt.text for prompt in source.heldout(2, seed=1)} == {"text 10", "text 20"}
    assert {source(i).text for i in range(18)} == {f"text {i}" for i in range(1, 21)} - {"text 10", "text 20"}
    assert source.heldout(5, seed=1) == source.heldout(5, seed=1)
    assert [prompt.ordinal for prompt in source.heldout(5, seed=1)] == [0, 1, 2, 3, 4]


def test_a_small_file_has_nothing_to_evaluate_on(tmp_path: Path) -> None:
    source = FilePrompts(numbered(tmp_path, 19), seed=0)
    assert len({source(i).text for i in range(19)}) == 19
    with pytest.raises(ConfigError, match=r"no held-out prompts to evaluate on.*evaluation.prompts = 0"):
        source.heldout(1, seed=0)


BROKEN = {
    r"prompts.jsonl:2: no image .*gone\.png": {"image": "gone.png", "prompt": "x"},
    r"prompts.jsonl:2: image .*text\.png: broken image": {"image": "text.png", "prompt": "x"},
    r"prompts.jsonl:2: image .*half\.png: broken image": {"image": "half.png", "prompt": "x"},
    r"prompts.jsonl:2: the prompt is empty": {"image": "a.png", "prompt": "  "},
    r"prompts.jsonl:2: prompt = \[\"a\", \"b\"\] is a list; a text is expected": {
        "image": "a.png",
        "prompt": ["a", "b"],
    },
    r"prompts.jsonl:2: prompt = {\"text\": \"x\"} is an object": {"image": "a.png", "prompt": {"text": "x"}},
    r"prompts.jsonl:2: prompt = 12 is a number": {"image": "a.png", "prompt": 12},
    r"prompts.jsonl:2: prompt = null is no text": {"image": "a.png", "prompt": None},
    r"prompts.jsonl:2: image = \[\"a.png\"\] is a list": {"image": ["a.png"], "prompt": "x"},
    r"prompts.jsonl:2: category = {} is an object": {"image": "a.png", "prompt": "x", "category": {}},
    r"prompts.jsonl:2: prompt: '.ud83e' is half of a character": '{"image": "a.png", "prompt": "a \\ud83e"}',
    r"prompts.jsonl:2: no image .*/a.nb.png": {"image": "a\nb.png", "prompt": "x"},
    r"prompts.jsonl:2: no image .*/x{300}": {"image": "x" * 300, "prompt": "x"},
    r"prompts.jsonl:2: no image .*/日{300}": {"image": "日" * 300, "prompt": "x"},
    r"prompts.jsonl:2: the image is empty": {"image": "", "prompt": "x"},
    r"prompts.jsonl:2: no column 'prompt'; the columns are image": {"image": "a.png"},
    r"prompts.jsonl:2: no column 'image'; the columns are prompt": {"prompt": "x"},
    r"prompts.jsonl:2: split = 'test'; allowed: train, heldout": {"image": "a.png", "prompt": "x", "split": "test"},
    r"prompts.jsonl:2: not valid JSON": "{",
    r"prompts.jsonl:2: expected an object": "[1]",
    r"prompts.jsonl:2: line 1 already has the id 'one'": {"image": "a.png", "prompt": "x", "id": "one"},
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_bad_line_is_named_in_one_line(tmp_path: Path, message: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=message) as error:
        FilePrompts(jsonl(tmp_path, {"image": "a.png", "prompt": "fine", "id": "one"}, BROKEN[message]), seed=0)
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompt file .*nowhere\.jsonl: no such file"):
        open_prompts(str(tmp_path / "nowhere.jsonl"), seed=0)
    with pytest.raises(ConfigError, match=r"allowed are \.jsonl and \.csv"):
        open_prompts(str(tmp_path / "prompts.yaml"), seed=0)
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"latin\.csv: cannot be read"):
        open_prompts(str(tmp_path / "latin.csv"), seed=0)
    for empty in ("", "\n\n"):
        with pytest.raises(ConfigError, match=r"prompts\.jsonl: no prompts in it"):
            FilePrompts(jsonl(tmp_path, empty), seed=0)
    (tmp_path / "short.csv").write_text("image,prompt\na.png\n")
    with pytest.raises(ConfigError, match=r"short\.csv:2: expected 2 columns"):
        open_prompts(str(tmp_path / "short.csv"), seed=0)
    with pytest.raises(ConfigError, match="every prompt is held out"):
        FilePrompts(numbered(tmp_path, 2, split="heldout"), seed=0)(0)


def test_text_to_video_prompts_need_no_image(tmp_path: Path) -> None:
    source = open_prompts(str(jsonl(tmp_path, {"prompt": "a robot"})), seed=0, needs_image=False)
    assert source(0).image is None


def test_toon_is_a_source() -> None:
    assert open_prompts("toon", seed=5)(3) == ToonPrompts(5)(3)


def test_with_a_size_the_image_is_the_first_frame_itself(tmp_path: Path) -> None:
    """What the model is conditioned on, rewards compare with and people see: cropped, not squeezed."""
    wide = np.full((48, 128, 3), 120, np.uint8)
    wide[:, :16] = wide[:, -16:] = 255  # outside of the crop
    Image.fromarray(wide).save(tmp_path / "wide.png")
    source = FilePrompts(jsonl(tmp_path, {"image": "wide.png", "prompt": "x"}), seed=0, size=(48, 64))
    image = source(0).image
    assert image is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), np.full((48, 64, 3), 120))


def test_a_file_can_be_read_as_it_is(tmp_path: Path) -> None:
    file = numbered(tmp_path, 23)
    prompts = list(file_prompts(file))
    assert [prompt.text for prompt in prompts] == [f"text {i}" for i in range(1, 24)]
    assert [prompt.ordinal for prompt in prompts] == list(range(23))
    assert all(prompt.image for prompt in prompts)
    held, train = (list(file_prompts(file, split=split)) for split in ("heldout", "train"))
    assert [(prompt.ordinal, prompt.text) for prompt in held] == [(9, "text 10"), (19, "text 20")]
    assert sorted([*held, *train], key=lambda prompt: prompt.ordinal) == prompts


def test_a_file_of_held_out_rows_alone_can_be_read(tmp_path: Path) -> None:
    file = numbered(tmp_path, 3, split="heldout")
    assert [prompt.text for prompt in file_prompts(file)] == ["text 1", "text 2", "text 3"]
    with pytest.raises(ConfigError, match=r"prompts\.jsonl: no prompt with split = train"):
        file_prompts(file, split="train")


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    """Also pictures that end too early, which only decoding finds."""
    whole = encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    good = {"image": "a.png", "prompt": "x"}
    file = jsonl(tmp_path, good, {"image": "half.png", "prompt": "x"}, good, "{", {"image": "b.png", "prompt": 1}, good)
    with pytest.raises(ConfigError) as caught:
        FilePrompts(file, seed=0)
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"{file}: bad rows (3):"
    assert [line.removeprefix(f"{file}:")[0] for line in lines] == ["2", "4", "5"]


def test_a_picture_is_found_in_either_form_of_its_name(tmp_path: Path) -> None:
    picture(tmp_path / "e\u0301.png", value=7)
    source = FilePrompts(jsonl(tmp_path, {"image": "\u00e9.png", "prompt": "x"}), seed=0)
    assert source(0).image == (tmp_path / "e\u0301.png").read_bytes()


def test_ids_are_the_same_in_either_form(tmp_path: Path) -> None:
    one, other = ({"image": "a.png", "prompt": "x", "id": id} for id in ("\u00e9", "e\u0301"))
    with pytest.raises(ConfigError, match="line 1 already has the id"):
        FilePrompts(jsonl(tmp_path, one, other), seed=0)


def test_repetitions_are_in_the_split_of_the_first(tmp_path: Path) -> None:
    """Otherwise the comparison would use prompts that were trained on."""
    rows = [{"image": "a.png", "prompt": f"text {i % 19}"} for i in range(40)]
    source = FilePrompts(jsonl(tmp_path, *rows), seed=0)
    train, held = ({row.text for row in source.rows if row.split == split} for split in ("train", "heldout"))
    assert train | held == {f"text {i}" for i in range(19)}
    assert held == {"text 9"}
    assert not train & held
    assert [(row.line, first.line) for row, first in repetitions(source.rows)][:2] == [(20, 1), (21, 2)]


def test_a_prompt_in_both_splits_is_refused(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "prompt": "x", "split": split} for split in ("train", "train", "heldout")]
    with pytest.raises(ConfigError, match="jsonl:3: split = heldout, but line 1 is the same prompt, and train"):
        FilePrompts(jsonl(tmp_path, *rows), seed=0)


def test_columns_that_nothing_reads_are_told(tmp_path: Path) -> None:
    file, told = tmp_path / "a.jsonl", []
    file.write_text('{"prompt": "it walks", "image": "x.png", "spilt": "heldout", "note": null}\n')
    file_prompts(file, needs_image=False, tell=told.append)
    assert told == [f"{file}: nothing reads the columns image, spilt"]


def test_other_names_of_a_picture_are_the_same_prompt(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8)))
    (tmp_path / "link.png").symlink_to("a.png")
    file = tmp_path / "a.jsonl"
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "other.png").write_bytes(encode_png(np.full((4, 4, 3), 9, np.uint8)))
    names = {"a.png": "train", "link.png": "heldout", "sub/../a.png": "heldout", "copy.png": "heldout"}
    names |= {"other.png": "heldout"}
    rows = [{"prompt": "it walks", "image": name, "split": split} for name, split in names.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="split = heldout, but line 1 is the same prompt, and train") as caught:
        FilePrompts(file, 0)
    assert all(f"a.jsonl:{line}: " in str(caught.value) for line in (2, 3, 4))
    assert "a.jsonl:5: " not in str(caught.value)
