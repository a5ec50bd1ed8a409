"""The wire format: messages round-trip, and malformed input raises an error that names the field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.exchange.api import ScoredCandidate, State, Submitted
from common.messages import (
    ITEM_BYTES,
    Candidate,
    Conditioning,
    Prompt,
    Purpose,
    SamplingLease,
    Score,
    ScoreTask,
    Selection,
    SerializedTensor,
    TensorEntry,
    TrainingGroup,
    WeightVersion,
)
from common.rpc.codec import MAX_HEADER, MAX_ITEMS, Limits, WireError, pack, unpack

number = st.integers(-(2**63), 2**64 - 1)
real = st.floats(allow_nan=False)
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
arrays = st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes, st.integers(0, 255)).map(
    lambda drawn: SerializedTensor(drawn[0], drawn[1], bytes([drawn[2]]) * (ITEM_BYTES[drawn[0]] * _product(drawn[1])))
)
prompts = st.builds(Prompt, number, st.text(), st.text(), st.none() | st.binary(), st.sampled_from(Purpose))
conditionings = st.builds(Conditioning, arrays, st.none() | arrays)
candidates = st.builds(Candidate, st.text(), number, number, number, number, arrays, st.binary())
selections = st.lists(number, min_size=1, unique=True).map(lambda kept: Selection(tuple(kept), (0.5,) * len(kept)))
groups = st.builds(
    TrainingGroup,
    *(number, number, selections, st.lists(real).map(tuple), conditionings, st.lists(arrays).map(tuple), number),
    prompts,
)
versions = st.builds(
    WeightVersion,
    *(number, number, number, st.text(), number),
    st.lists(st.builds(TensorEntry, st.text(), st.text(), shapes, number, st.text())).map(tuple),
    st.text(),
)
MESSAGES: dict[Any, st.SearchStrategy[Any]] = {
    SamplingLease | None: st.none()
    | st.builds(SamplingLease, prompts, st.text(), number, number, st.lists(number).map(tuple)),
    Conditioning: conditionings,
    Candidate: candidates,
    Sequence[ScoreTask]: st.lists(st.builds(ScoreTask, st.text(), prompts, st.binary(), number, number), max_size=3),
    Score: st.builds(
        Score,
        *(st.text(), st.text(), st.dictionaries(st.text(), real, max_size=3)),
        purpose=st.sampled_from(Purpose),
    ),
    Sequence[TrainingGroup]: st.lists(groups, max_size=2),
    Sequence[ScoredCandidate]: st.lists(
        st.builds(ScoredCandidate, prompts, candidates, st.dictionaries(st.text(), real, max_size=2)), max_size=2
    ),
    WeightVersion: versions,
    Submitted: st.builds(Submitted, st.booleans(), st.text()),
    dict[State, int]: st.dictionaries(st.sampled_from(State), number),
    dict[int, str]: st.dictionaries(st.integers(0, 99), st.text(), max_size=3),
}


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@given(st.sampled_from(list(MESSAGES)).flatmap(lambda kind: st.tuples(st.just(kind), MESSAGES[kind])))
def test_messages_round_trip(drawn: tuple[Any, Any]) -> None:
    kind, message = drawn
    frames = pack({"id": 1}, message)
    assert all(type(frame) is bytes for frame in frames)
    read = unpack(frames)
    assert read.header["id"] == 1
    assert read.read(kind) == message


def test_bytes_are_sent_outside_the_header() -> None:
    clip = b"\0" * 100_000
    header, *blobs = pack({}, ScoreTask("0-0-v0", Prompt(0, "p", "a cat", image=b"png"), clip))
    assert blobs == [b"png", clip]
    assert len(header) < 300


def test_integers_are_accepted_as_floats() -> None:
    assert unpack(pack({}, {"motion": 3})).read(dict[str, float]) == {"motion": 3.0}


def body(plain: Any, blobs: tuple[bytes, ...] = ()) -> list[bytes]:
    return [msgpack.packb({"schema": 1, "body": plain, "blobs": [len(blob) for blob in blobs]}), *blobs]


@pytest.mark.parametrize(
    ("kind", "plain", "message"),
    [
        (Submitted, {"accepted": True, "price": 3}, "body: Submitted has no field 'price'"),
        (Submitted, {}, "body: Submitted without its field 'accepted'"),
        (Submitted, [True], r"body: expected Submitted, got \[True\]"),
        (Submitted, {"accepted": 1}, "body.accepted: expected bool, got 1"),
        (
            Prompt,
            {"ordinal": 0, "id": "p", "text": "x", "purpose": "fun"},
            "body.purpose: expected one of train, probe, eval",
        ),
        (
            Prompt,
            {"ordinal": 0, "id": "p", "text": "x", "image": 1},
            "body.image: expected the index of one of 1 blobs, got 1",
        ),
        (
            Prompt,
            {"ordinal": 0, "id": "p", "text": "x", "image": -1},
            "body.image: expected the index of one of 1 blobs",
        ),
        (Sequence[int], {"0": 1}, "body: expected a list"),
        (Sequence[int], [1, "2"], r"body\[1\]: expected int, got '2'"),
        (dict[str, float], {"motion": "high"}, r"body\['motion'\]: expected float, got 'high'"),
        (SerializedTensor, {"dtype": "float64", "shape": [1], "data": 0}, "body: dtype 'float64': allowed are float32"),
        (SerializedTensor, {"dtype": "uint8", "shape": [4], "data": 0}, r"body: uint8\[4\] needs 4 bytes, got 3"),
        (
            SerializedTensor,
            {"dtype": "uint8", "shape": [-1, -3], "data": 0},
            r"body: uint8\[-1, -3\]: sizes must not be negative",
        ),
    ],
)
def test_a_mismatch_names_the_field(kind: Any, plain: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(body(plain, (b"one",))).read(kind)


def deep(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    "kind", [Submitted, Prompt, Purpose, Sequence[int], dict[int, str], int, str, SerializedTensor, None]
)
@pytest.mark.parametrize("levels", [12, 400])
def test_errors_about_deeply_nested_input_are_short(kind: Any, levels: int) -> None:
    with pytest.raises(WireError) as found:
        unpack(body(deep(levels))).read(kind)
    assert len(str(found.value)) < 200


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (msgpack.packb({"body": msgpack.ExtType(5, b"x")}), "exceeds max_ext_len"),
        (b"\x81\xa1a\xc7\x00\x05", "extension type 5"),
        (msgpack.packb({msgpack.Timestamp(1, 2): 1}), "exceeds max_ext_len"),
        (msgpack.packb({7: 1}), "int is not allowed for map key"),
        (msgpack.packb({"body": [None] * (MAX_ITEMS + 1)}), "16385 exceeds max_array_len"),
        (msgpack.packb({str(place): None for place in range(MAX_ITEMS + 1)}), "16385 exceeds max_map_len"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "4294967295 exceeds max_array_len"),
        (b"\x91" * 100_000, "not valid msgpack"),
        (b"\x81\xa1a\xa2\xff\xff", "can't decode byte 0xff"),
        (msgpack.packb({"schema": "z" * 100_000}), "schema 'zzz"),
        (msgpack.packb({"schema": 1, "blobs": [1] * 10_000}), r"the header says \[1, 1, 1"),
    ],
)
def test_excessive_headers_are_rejected(header: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message) as found:
        unpack([header])
    assert len(str(found.value)) < 200


def test_integer_keys_are_sent_as_text() -> None:
    assert unpack(pack({}, {7: "seven", -1: "less"})).read(dict[int, str]) == {7: "seven", -1: "less"}
    for key in ("seven", "", "1e3", "٧", "9" * 30):
        with pytest.raises(WireError, match="body key: expected int"):
            unpack(body({key: "x"})).read(dict[int, str])


def test_sizes_are_checked_before_decoding() -> None:
    with pytest.raises(WireError, match="a header of"):
        unpack([b"\0" * (MAX_HEADER + 1)])
    with pytest.raises(WireError, match="at most 4096 blobs of 10 bytes each"):
        unpack(body(None, (b"x" * 11,)), Limits(blob=10))
    with pytest.raises(WireError, match="20 in total are allowed"):
        unpack(body(None, (b"x" * 9,) * 3), Limits(blob=10, total=20))
    with pytest.raises(WireError, match="an empty message"):
        unpack([])


@given(st.binary(max_size=200), st.lists(st.binary(max_size=5), max_size=3))
def test_random_bytes_are_rejected(header: bytes, blobs: list[bytes]) -> None:
    try:
        unpack([header, *blobs])
    except WireError:
        return
    pytest.fail("random bytes were accepted as a message")
