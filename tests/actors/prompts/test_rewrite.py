"""Rewriting a prompt file: what is kept, what fails, and that it resumes. The writers are plain functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from actors.prompts.rewrite import MAX_CHARACTERS, RewriteError, Writer, length_check, rewrite
from actors.prompts.source import FilePrompts, file_prompts
from common.errors import ConfigError
from tests.support.tiny import tiny_pipeline

ANY_LENGTH: Callable[[str], None] = lambda text: None  # noqa: E731


def long(caption: str) -> str:
    return f"{caption}, in detail"


def picture(file: Path, grey: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), grey).save(file)
    return file


def prompt_file(file: Path, *rows: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(file: Path, out: Path, writer: Writer = long, check: Callable[[str], None] = ANY_LENGTH) -> dict[str, str]:
    return rewrite(file, out, writer, check, lambda _: None)


def never(caption: str) -> str:
    raise AssertionError(f"asked again: {caption}")


def test_all_columns_stay_and_the_old_caption_has_its_own(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "frames" / "a.png", 7)
    row = {"image": "frames/a.png", "prompt": " walks ", "character": "robot", "category": "walk", "note": 3}
    file = prompt_file(tmp_path / "in" / "p.jsonl", row)
    out = tmp_path / "new" / "deep" / "long.jsonl"
    assert run(file, out) == {}
    assert read(out) == [
        {
            "image": "../../in/frames/a.png",
            "prompt": "walks, in detail",
            "character": "robot",
            "category": "walk",
            "note": 3,
            "id": "p-1",
            "split": "train",
            "original": "walks",
        }
    ]
    (old,), (new,) = file_prompts(file), file_prompts(out)
    assert (new.id, new.text, new.image, new.character, new.category) == (
        old.id, "walks, in detail", old.image, old.character, old.category,
    )  # fmt: skip


def test_image_paths_lead_back_over_a_linked_folder_and_absolute_ones_stay(tmp_path: Path) -> None:
    absolute = str(picture(tmp_path / "b.png"))
    picture(tmp_path / "in" / "a.png")
    file = prompt_file(tmp_path / "in" / "p.jsonl", *({"image": i, "prompt": "x"} for i in ("a.png", absolute)))
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    out = tmp_path / "link" / "long.jsonl"
    run(file, out)
    assert [row["image"] for row in read(out)] == ["../../in/a.png", absolute]
    assert len(list(file_prompts(out))) == 2


def test_the_same_prompts_stay_held_out_though_one_fails(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", *({"prompt": f"walks {i}"} for i in range(1, 31)))
    out = tmp_path / "long.jsonl"

    def writer(caption: str) -> str:
        return "" if caption == "walks 3" else long(caption)

    assert run(file, out, writer) == {"p-3": "the answer is empty"}
    held = [{prompt.id for prompt in FilePrompts(one, 0, False).heldout(3, 0)} for one in (file, out)]
    assert held == [{"p-10", "p-20", "p-30"}] * 2
    assert len(read(out)) == 29


def test_it_resumes_after_a_crash_with_a_torn_line(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", *({"id": name, "prompt": name * 2} for name in "abc"))
    out, asked = tmp_path / "long.jsonl", []

    def crashes(caption: str) -> str:
        asked.append(caption)
        if caption == "cc":
            assert [row["id"] for row in read(out)] == ["a", "b"]  # on disk before the next is asked for
            raise KeyboardInterrupt
        return long(caption)

    with pytest.raises(KeyboardInterrupt):
        run(file, out, crashes)
    with out.open("a") as lines:
        lines.write('{"id": "c", "prompt": "cc, in')
    assert run(file, out, lambda caption: asked.append(caption) or "again") == {}
    assert asked == ["aa", "bb", "cc", "cc"]
    assert [row["prompt"] for row in read(out)] == ["aa, in detail", "bb, in detail", "again"]
    run(file, out, never)


def test_a_changed_caption_is_asked_for_again_and_the_order_is_the_files(tmp_path: Path) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "long.jsonl"
    run(prompt_file(file, {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}, {"id": "c", "prompt": "z"}), out)
    prompt_file(file, {"id": "b", "prompt": "new"}, {"id": "a", "prompt": "x", "category": "k"})
    run(file, out, lambda caption: f"2: {caption}")
    rows = [(row["id"], row["original"], row["prompt"], row.get("category")) for row in read(out)]
    assert rows == [("b", "new", "2: new", None), ("a", "x", "x, in detail", "k")]


def test_a_row_that_fails_is_left_out_named_and_asked_for_again(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", *({"id": name, "prompt": name} for name in "abcd"))
    out, told = tmp_path / "long.jsonl", []

    def writer(caption: str) -> str:
        if caption == "b":
            raise RewriteError("no idea")
        return {"a": " \n", "c": '""', "d": "fine"}[caption]

    failed = rewrite(file, out, writer, ANY_LENGTH, told.append)
    assert failed == {"a": "the answer is empty", "b": "no idea", "c": "the answer is empty"}
    assert told == [
        "1/4 a: failed: the answer is empty",
        "2/4 b: failed: no idea",
        "3/4 c: failed: the answer is empty",
        "4/4 d",
    ]
    assert [row["id"] for row in read(out)] == ["d"]
    assert run(file, out, long) == {}
    assert [row["id"] for row in read(out)] == list("abcd")


@pytest.mark.parametrize(
    ("answer", "text"),
    [(' "A fox\n\nwalks." ', "A fox walks."), ("“A fox.”", "A fox."), ('A "fox"', 'A "fox"'), ('"', '"')],
)
def test_an_answer_becomes_one_line_without_quotation_marks(tmp_path: Path, answer: str, text: str) -> None:
    out = tmp_path / "long.jsonl"
    run(prompt_file(tmp_path / "p.jsonl", {"prompt": "x"}), out, lambda _: answer)
    assert [row["prompt"] for row in read(out)] == [text]


def test_tokens_are_counted_with_the_models_tokenizer(tmp_path: Path) -> None:
    """The tiny model takes 12 tokens: 11 words and the end token."""
    check = length_check(tiny_pipeline(tmp_path))
    check("robot " * 11)
    with pytest.raises(RewriteError, match=r"^the answer has 13 T5 tokens; at most 12 are allowed$"):
        check("robot " * 12)


def test_characters_are_counted_without_a_tokenizer() -> None:
    check = length_check(None)
    assert MAX_CHARACTERS == 904  # as docs/models.md says
    check("a" * 904)
    with pytest.raises(RewriteError, match=r"^the answer has 905 characters; at most 904 are allowed, about 226 T5"):
        check("a" * 905)


def test_a_kept_caption_over_the_limit_is_asked_for_again(tmp_path: Path) -> None:
    file, out = prompt_file(tmp_path / "p.jsonl", {"prompt": "x"}), tmp_path / "long.jsonl"
    run(file, out, lambda _: "a" * 905)
    assert run(file, out, long, length_check(None)) == {}
    assert [row["prompt"] for row in read(out)] == ["x, in detail"]


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", {"prompt": "x"})
    other = prompt_file(tmp_path / "other.jsonl", {"id": "a", "prompt": "mine"})
    for out, message in (
        (file, r"^--out .*p\.jsonl: is the file to be rewritten; name a new one$"),
        (other, r"^--out .*other\.jsonl:1: not a row that this command wrote; "),
        (tmp_path / "long.csv", r"^--out .*long\.csv: must end in \.jsonl$"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ConfigError, match=message):
            run(file, out, never)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bad_file_is_refused_before_a_caption_is_asked_for(tmp_path: Path) -> None:
    file = prompt_file(tmp_path / "p.jsonl", {"prompt": "x"}, {"prompt": "y", "image": "gone.png"})
    with pytest.raises(ConfigError, match=r"p\.jsonl:2: no image .*gone\.png$"):
        run(file, tmp_path / "long.jsonl", never)
    assert not (tmp_path / "long.jsonl").exists()
