"""mp4 bytes: what goes in comes out, and the same frames give the same bytes."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from common.data import video
from common.data.player import frames_at
from common.data.video import (
    anonymous_mp4,
    clip_length,
    decode_clip,
    encode_mp4,
    plays_everywhere,
    side_by_side,
)
from common.toon.world import ACTIONS, SCENES, Shot, render


def shots() -> list[np.ndarray]:
    return [render(Shot("robot", scene, action, 6)) for scene, action in zip(SCENES, ACTIONS, strict=False)]


def test_a_round_trip_keeps_the_picture() -> None:
    for clip in shots():
        data = encode_mp4(clip, 8)
        back = decode_clip(data)
        assert (back.shape, back.dtype) == (clip.shape, np.uint8)
        assert np.abs(back.astype(int) - clip).mean() < 2
        assert np.abs((back.astype(int) - clip).mean((0, 1, 2))).max() < 0.5  # no colour cast
        assert clip_length(data) == (9, 8.0)


@pytest.mark.parametrize("shape", [(1, 48, 64, 3), (5, 30, 34, 3), (49, 32, 32, 3), (9, 16, 72, 3)])
def test_any_length_and_size(shape: tuple[int, ...]) -> None:
    ramp = np.linspace(0, 255, shape[0] * shape[1] * shape[2]).reshape(*shape[:3], 1)
    clip = np.repeat(ramp, 3, 3).astype(np.uint8)
    back = decode_clip(encode_mp4(clip, 24))
    assert back.shape == shape
    assert np.abs(back.astype(int) - clip).mean() < 2


def test_the_same_frames_give_the_same_bytes() -> None:
    clip = shots()[0]
    assert encode_mp4(clip, 8) == encode_mp4(clip.copy(), 8)
    assert encode_mp4(clip, 8) != encode_mp4(clip, 16)


def test_earlier_memory_contents_do_not_change_the_bytes() -> None:
    rng = np.random.default_rng(0)
    clip = np.repeat(rng.integers(0, 255, (9, 12, 16, 3)), 4, 1).repeat(4, 2).astype(np.uint8)
    seen, held = set(), []
    for _ in range(25):
        held = [*held[-20:], rng.integers(0, 255, int(rng.integers(1, 300_000))).astype(np.uint8)]
        seen.add(encode_mp4(clip, 8))
    assert len(seen) == 1


def test_the_format_is_h264_without_subsampling() -> None:
    with av.open(io.BytesIO(encode_mp4(shots()[0], 12))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv444p")
        assert (stream.average_rate, stream.height, stream.width) == (12, 48, 64)


def test_some_frames() -> None:
    data = encode_mp4(shots()[0], 8)
    whole = decode_clip(data)
    assert np.array_equal(frames_at(data, [2, 8]), whole[[2, 8]])
    with pytest.raises(ValueError, match=r"frames \[9\] of a video of 9 frames"):
        frames_at(data, [9])


def test_a_contact_sheet_has_a_row_per_clip() -> None:
    clip = shots()[0]
    sheet = np.asarray(video.contact_sheet([clip, clip[:, ::-1]]))
    assert sheet.shape == (2 * 96, 9 * 128, 3)
    assert np.array_equal(sheet[:96:2, 128:256:2], clip[1])
    assert np.array_equal(sheet[96::2, -128::2], clip[8, ::-1])
    long = np.zeros((49, 48, 640, 3), np.uint8)
    long[48] = 255
    small = np.asarray(video.contact_sheet([long]))
    assert small.shape == (10, 9 * 128, 3)
    assert (small[:, :1024] == 0).all()
    assert (small[:, 1024:] == 255).all()


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"a clip is uint8 \[F, H, W, 3\].*got float32 \[9, 48, 64, 3\]"):
        encode_mp4(np.zeros((9, 48, 64, 3), np.float32), 8)
    with pytest.raises(ValueError, match=r"got uint8 \[48, 64, 3\]"):
        encode_mp4(np.zeros((48, 64, 3), np.uint8), 8)
    whole = encode_mp4(shots()[0], 8)
    for data in (b"", b"nonsense", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="not a readable video"):
            decode_clip(data)


def test_two_clips_in_one_picture() -> None:
    one, other = np.full((9, 48, 64, 3), 40, np.uint8), np.full((7, 48, 64, 3), 200, np.uint8)
    made = side_by_side([one, other], 8)
    assert plays_everywhere(made)
    assert clip_length(made) == (7, 8.0)  # the shorter one's
    frames = decode_clip(made)
    assert frames.shape == (7, 192, 512, 3)  # enlarged four times
    assert np.abs(frames[:, :, :250].astype(int) - 40).max() < 8
    assert np.abs(frames[:, :, 262:].astype(int) - 200).max() < 8
    with pytest.raises(ValueError, match=r"clips of different sizes: \[24, 64\] and \[48, 64\]"):
        side_by_side([one, other[:, :24]], 8)


def test_two_clips_of_real_videos_are_shrunk() -> None:
    clip = np.zeros((3, 480, 720, 3), np.uint8)
    assert decode_clip(side_by_side([clip, clip], 16)).shape == (3, 320, 960, 3)


@pytest.mark.parametrize(("codec", "container", "copied"), [("libx264", "mov", True), ("ffv1", "matroska", False)])
def test_an_anonymous_video_has_the_pictures_alone(codec: str, container: str, copied: bool) -> None:
    clip = shots()[0]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as made:
        made.metadata["title"] = "by Vidu"
        stream = made.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.metadata["title"] = "by Vidu"
        for one in clip:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        made.mux(stream.encode(None))
    bare = anonymous_mp4(file.getvalue())
    assert b"Vidu" in file.getvalue()
    assert b"Vidu" not in bare
    assert clip_length(bare) == (9, 8.0)
    before, after = decode_clip(file.getvalue()), decode_clip(bare)
    assert np.array_equal(before, after) == copied
    assert np.abs(before.astype(int) - after).mean() < 2
    with av.open(io.BytesIO(bare)) as made:
        assert made.format.name.startswith("mov,mp4")
    with pytest.raises(ValueError, match="not a readable video"):
        anonymous_mp4(b"no video")
