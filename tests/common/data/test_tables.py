"""Tables of users: encodings, dialects of CSV, values that are no text, and all faults at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.tables import BadRows, caption_of, read_table, read_text, text_of, unread_columns
from common.errors import ConfigError

ROBOT = {"image": "a.png", "prompt": "a robot, 日本 é"}


def rows(file: Path, content: str | bytes) -> list[tuple[int, dict]]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_table(file, "prompt file"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_are_not_content(tmp_path: Path, encoding: str, end: str) -> None:
    line = json.dumps(ROBOT, ensure_ascii=False)
    found = rows(tmp_path / "a.jsonl", end.join([line, "", line, "", ""]).encode(encoding))
    assert found == [(1, ROBOT), (3, ROBOT)]
    table = end.join(["image,prompt", 'a.png,"a robot, 日本 é"', "", ",", ""]).encode(encoding)
    assert rows(tmp_path / "a.csv", table) == [(2, ROBOT)]


def test_a_mark_between_joined_files_is_not_content(tmp_path: Path) -> None:
    one = b"\xef\xbb\xbf" + json.dumps(ROBOT).encode() + b"\n"
    assert [row for _, row in rows(tmp_path / "a.jsonl", one + one)] == [ROBOT, ROBOT]


def test_a_mark_that_json_escapes_is_not_content(tmp_path: Path) -> None:
    """Programs that read a text with its mark write it so."""
    ((_, row),) = rows(tmp_path / "a.jsonl", '{"\\ufeffprompt": "\\ufeffa robot"}')
    assert text_of(row, "prompt") == "a robot"


@pytest.mark.parametrize("text", ["a \udcff", "a\0b", "", " \ufeff\u200b"])
def test_a_caption_of_the_command_line_is_checked_like_one_of_a_file(text: str) -> None:
    assert caption_of("--text", " \ufeffa robot ") == "a robot"
    with pytest.raises(ConfigError, match="--text: ") as caught:
        caption_of("--text", text)
    assert str(caught.value).isprintable()


def test_a_missing_file_is_said_with_the_folder_that_its_path_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_text(Path("a.csv"), "prompt file")
    assert str(caught.value) == f"prompt file a.csv: no such file in {tmp_path}"
    with pytest.raises(ConfigError, match=r"no such file$"):
        read_text(tmp_path / "a.csv", "prompt file")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\nb é".encode("latin-1"), "byte 0xe9 in line 2 is not UTF-8; save the file as UTF-8"),
        ("a\nb".encode("utf-16-le"), "a zero byte in line 1; save the file as UTF-8"),
        (b"\xff\xfea", "byte 0x61 in line 1 is not UTF-16; save the file as UTF-8"),
    ],
)
def test_what_is_no_text_is_said_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path / "a.csv", "captions file")
    assert str(caught.value) == f"captions file {tmp_path / 'a.csv'}: cannot be read: {said}"


@pytest.mark.parametrize(
    "table",
    [
        'image,prompt\na.png,"a robot, 日本 é"\n',
        "image;prompt\r\na.png;a robot, 日本 é\r\n;\r\n",
        "image\tprompt\na.png\ta robot, 日本 é\n\t\n",
        'sep=;\nimage;prompt\na.png;"a robot, 日本 é"\n',
        ' Image , "PROMPT"\na.png, "a robot, 日本 é"\n   \n',
        '\n"prompt","image"\n"a robot, 日本 é","a.png"',
    ],
)
def test_dialects_of_csv(tmp_path: Path, table: str) -> None:
    ((_, found),) = rows(tmp_path / "a.csv", table)
    assert found == ROBOT


def test_quotes_line_breaks_and_delimiters_stay_in_a_quoted_text(tmp_path: Path) -> None:
    table = 'image;prompt\na.png;"says ""hi""; then\nwalks"\nb.png;x\n'
    assert rows(tmp_path / "a.csv", table) == [
        (2, {"image": "a.png", "prompt": 'says "hi"; then\nwalks'}),
        (4, {"image": "b.png", "prompt": "x"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "image,prompt\na.png,a robot, walking\n",
            "a.csv:2: expected 2 columns (image, prompt), found 3",
        ),
        ("a.csv", "image,prompt\na.png\n", "a.csv:2: expected 2 columns (image, prompt), found 1"),
        ("a.csv", "prompt,Prompt\na,b\n", "a.csv:1: two columns are called 'prompt'"),
        ("a.csv", 'image,prompt\na.png,"a', "a.csv:2: not valid CSV"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "a.jsonl:1: not valid JSON: 'prompt' is there twice"),
        ("a.jsonl", '{"id": NaN}', "a.jsonl:1: not valid JSON: NaN is no number of JSON"),
        ("a.jsonl", '{"id": [-Infinity]}', "a.jsonl:1: not valid JSON: -Infinity is no number of JSON"),
        ("a.jsonl", '{"id": 1e999}', "a.jsonl:1: not valid JSON: 1e999 is no number of JSON"),
        ("a.jsonl", '{"meta": {"a": 1, "a": 2}}', "a.jsonl:1: not valid JSON: 'a' is there twice"),
        ("a.jsonl", '{"prompt": "a\\u0000b"}', "a.jsonl:1: prompt: a zero character; write the text without it"),
        ("a.jsonl", '"a robot"', "a.jsonl:1: expected an object like"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not valid JSON"),
        ("a.jsonl", '[\n{"prompt": "a"},\n{"prompt": "b"}\n]', "a.jsonl:1: one JSON document over several lines"),
        ("a.jsonl", '\n{\n"prompt": "a"\n}', "a.jsonl:2: one JSON document over several lines"),
        ("a.jsonl", '{"prompt": "a robot \\ud83e"}', r"a.jsonl:1: prompt: '\ud83e' is half of a character"),
        ("a.jsonl", '{"tags": ["\\udc80"]}', r"a.jsonl:1: tags: '\udc80' is half of a character"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rows(tmp_path / name, content)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.jsonl", '{"prompt": "\\ud83e\\udd16"}') == [(1, {"prompt": "🤖"})]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["a", "b"], "a list"),
        ({"text": "x"}, "an object"),
        (12, "a number"),
        (1.5, "a number"),
        (True, "a truth value"),
    ],
)
def test_a_value_that_is_no_text_is_refused(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match="a text is expected") as caught:
        text_of({"prompt": value}, "prompt", numbers=False)
    assert str(caught.value) == f"prompt = {json.dumps(value)} is {kind}; a text is expected"


def test_an_id_may_be_a_number() -> None:
    assert text_of({"id": 7}, "id") == "7"
    assert text_of({"id": None}, "id") is None
    assert text_of({"id": "  "}, "id") is None


def test_a_text_of_which_nothing_can_be_seen_is_empty() -> None:
    for text in ("\u200b\u200d", "\u00a0\u3000\n", "\u200f \u2060", "\ufeff"):
        assert text_of({"prompt": text}, "prompt") is None
    for text in ("...", "🤖", "e\u0301", "日本"):
        assert text_of({"prompt": f" {text}\n"}, "prompt") == text


def test_all_bad_rows_are_in_one_message_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(["{", *['{"prompt": "x"}'] * 3, *["[]"] * 30]), encoding="utf-8")
    bad = BadRows(file)
    assert [line for line, _ in read_table(file, "prompt file", bad)] == [2, 3, 4]
    bad.add(3, "no\nimage")
    with pytest.raises(ConfigError) as caught:
        bad.check()
    lines = str(caught.value).split("\n  ")
    assert lines[0] == f"{file}: bad rows (32):"
    assert lines[1].startswith(f"{file}:1: not valid JSON")
    assert lines[2] == f"{file}:3: no\\nimage"
    assert len(lines) == 22
    assert lines[-1] == "and 12 more"


@pytest.mark.parametrize(
    ("table", "where", "said"),
    [
        ('image,prompt\na.png,x\nb.png,"a cat\nc.png,a dog\nd.png,y\n', 3, "unexpected end of data"),
        ('image,prompt\na.png,"a robot\nb.png,a cat\nc.png,a dog"\nd.png,y\n', 2, "'b.png,a cat' looks like a row"),
        ('image,prompt\n\na.png,"a robot\nb.png,"a cat, walks"\n', 3, "expected after"),
        ('id;image;prompt\n1;a.png;"a robot\n\n2;b.png;a cat"\n', 2, "goes on to line 4: '2;b.png;a cat\"' looks"),
        ('prompt\na\n"b\nc"\n', 3, "write the text on one line"),
        ('sep=;\nimage;prompt\na.png;"a\nb.png;c"\n', 3, "goes on to line 4"),
    ],
)
def test_a_stray_quotation_mark_swallows_no_rows(tmp_path: Path, table: str, where: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rows(tmp_path / "a.csv", table)
    assert f"a.csv:{where}: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("header", "row"), [("", ","), (",", ","), (",,", ",,"), ("", ",, ")])
def test_empty_columns_at_the_end_are_skipped(tmp_path: Path, header: str, row: str, end: str) -> None:
    table = f"\ufeffimage,prompt{header}{end}a.png,a cat{row}{end}"
    assert rows(tmp_path / "a.csv", table) == [(2, {"image": "a.png", "prompt": "a cat"})]


def test_a_column_without_a_name_is_named_as_one_that_nothing_reads(tmp_path: Path) -> None:
    assert rows(tmp_path / "a.csv", ",prompt\n0,a cat\n") == [(2, {"": "0", "prompt": "a cat"})]
    assert unread_columns(tmp_path / "a.csv", [""]).endswith("nothing reads the columns (no name)")
