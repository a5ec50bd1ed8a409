"""What a player shows of a video file is what is read: which frames, when, which way up, in which colours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from common.data.player import frames_at, timeline
from common.data.video import anonymous_mp4, clip_length, decode_clip, decode_video, plays_everywhere
from rewarders.rewarder import read_clip
from tests.support.videos import by_ffmpeg, cut, filtered, joined, quarters, video, with_aperture, without_frame

ONE = 1 << 16
MATRICES = {  # a, b, c, d of a display matrix -> how numpy does the same to a frame
    (1, 0, 0, 1): lambda frame: frame,
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
    (-1, 0, 0, -1): lambda frame: np.rot90(frame, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (0, 1, 1, 0): lambda frame: frame.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda frame: np.rot90(frame, 2).transpose(1, 0, 2),
}
VARIABLE = [*(place / 10 for place in range(11)), 2.0, 3.0, 4.0, 5.0]


def matrix(a: int, b: int, c: int, d: int) -> tuple[int, ...]:
    return (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)


def column(frame: np.ndarray) -> int:
    """The number of a frame of `quarters`, by its white column."""
    return int(frame.min(-1).astype(int).sum(0).argmax()) // 4


@pytest.mark.parametrize(
    ("container", "turn"),
    [(container, turn) for container in ("mp4", "mov") for turn in MATRICES]
    + [("matroska", turn) for turn in list(MATRICES)[:4]],  # it has no mirrored videos
)
def test_a_turned_video_is_read_upright(container: str, turn: tuple[int, int, int, int]) -> None:
    clip = quarters(4, 48, 72)  # 72 wide: some readers know no turn and cannot copy these rows either
    data = video(clip, container, matrix=matrix(*turn))
    stored = by_ffmpeg(data)
    assert stored.shape == clip.shape
    assert np.array_equal(decode_clip(data), np.stack([MATRICES[turn](frame) for frame in stored]))
    assert plays_everywhere(data) == (container != "matroska" and turn == (1, 0, 0, 1))


def test_another_angle_is_refused() -> None:
    half = round(ONE * 2**-0.5)
    data = video(quarters(2), matrix=(half, half, 0, -half, half, 0, 0, 0, 1 << 30))
    with pytest.raises(ValueError, match="not a quarter turn"):
        timeline(data)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize(("square", "size"), [(Fraction(2), (48, 128)), (Fraction(8, 9), (54, 64))])
def test_oblong_pixels_become_square_ones(container: str, square: Fraction, size: tuple[int, int]) -> None:
    data = video(quarters(2), container, square=square)
    read = decode_clip(data)
    assert read.shape == (2, *size, 3)
    assert np.array_equal(read, by_ffmpeg(data, f"scale={size[1]}:{size[0]}:flags=bicubic"))
    assert not timeline(data).plain


def test_oblong_pixels_of_a_turned_video_are_stretched_before_the_turn() -> None:
    data = video(quarters(2), square=Fraction(2), matrix=matrix(0, 1, -1, 0))
    assert decode_clip(data).shape == (2, 128, 48, 3)


@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv444p"),
        ("mp4", "libx264", "yuv420p10le"),
        ("mov", "mjpeg", "yuvj420p"),
        ("matroska", "ffv1", "yuv422p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpegts", "libx264", "yuv420p"),
    ],
)
def test_the_pixels_are_ffmpegs(container: str, codec: str, pix_fmt: str) -> None:
    clip = quarters(9, 72, 128)
    data = video(clip, container, codec, pix_fmt)
    read, fps = decode_video(data)
    assert np.array_equal(read, by_ffmpeg(data))
    assert np.abs(read.astype(int) - clip).mean() < 12
    assert (len(read), fps) == (9, 8.0)
    assert timeline(data).plain


@pytest.mark.parametrize("colours", [{"colorspace": 1}, {"colorspace": 5}, {"colorspace": 1, "color_range": 2}])
def test_the_files_colour_matrix_is_used(colours: dict[str, int]) -> None:
    data = video(quarters(2), colours=colours)
    assert np.array_equal(decode_clip(data), by_ffmpeg(data))


@pytest.mark.parametrize(
    ("colours", "name"),
    [
        ({"color_trc": 16, "color_primaries": 9, "colorspace": 9}, r"PQ \(HDR\) and BT.2020 colours"),
        ({"color_trc": 18}, r"HLG \(HDR\) colours"),
        ({"color_primaries": 12}, "Display P3 colours"),
        ({"color_trc": 8}, "linear colours"),
    ],
)
def test_colours_that_need_tone_mapping_are_refused(colours: dict[str, int], name: str) -> None:
    data = video(quarters(2), colours=colours)
    for read in (timeline, decode_clip, anonymous_mp4, read_clip, lambda data: frames_at(data, [0])):
        with pytest.raises(ValueError, match=f"{name}, which need tone mapping"):
            read(data)
    assert not plays_everywhere(data)


def test_a_stream_copied_cut_begins_where_it_was_cut() -> None:
    """Packets before the cut are in the file, because later ones need them; a player does not show them."""
    data = video(quarters(16), options={"g": "100", "bf": "0"})
    for container in ("mp4", "mov"):
        part = cut(data, 1.25, container)
        assert [column(frame) for frame in decode_clip(part)] == [10, 11, 12, 13, 14, 15]
        assert clip_length(part) == (6, 8.0)
        assert not timeline(part).plain
        with pytest.raises(ValueError, match="6 frames at 8 frames per second are too few: the model takes 9 at 8"):
            timeline(part).places(9, 8)


def test_times_choose_the_frames_of_a_variable_rate() -> None:
    data = video(quarters(15), "matroska", times=VARIABLE)
    shown = timeline(data)
    assert shown.times == pytest.approx(VARIABLE)
    assert (shown.constant, shown.fps, shown.end) == (False, 10.0, pytest.approx(5.1))
    assert [VARIABLE[place] for place in shown.places(11, 2)] == [0, 0.5, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert [VARIABLE[place] for place in shown.places(4, 1, first=2)] == [0.2, 1, 2, 3]
    with pytest.raises(ValueError, match="15 frames at 10 frames per second are too few"):
        shown.places(12, 2)
    frames, fps = decode_video(data)
    assert fps == 10.0
    assert [column(frame) for frame in frames] == [*range(10), *[10] * 10, *[11] * 10, *[12] * 10, *[13] * 10, 14]


def test_frames_are_on_screen_as_ffmpeg_says() -> None:
    """A 24 fps video at 10 fps, and a variable one: ffmpeg's fps filter with round=up shows the last one begun."""
    for data, fps in ((video(quarters(14), rate=24), 10), (video(quarters(15), "matroska", times=VARIABLE), 4)):
        places = timeline(data).places(5, fps)
        assert np.array_equal(frames_at(data, places), by_ffmpeg(data, f"fps={fps}:round=up:start_time=0")[:5])


@pytest.mark.parametrize(
    ("count", "rate", "frames", "fps", "places"),
    [
        (9, 8, 9, 8, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (13, 24, 5, 8, [0, 3, 6, 9, 12]),
        (5, 4, 9, 8, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        (10, 10, 8, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (3, 8, 1, 8, [0]),
    ],
)
def test_frames_are_taken_at_the_models_rate(count: int, rate: int, frames: int, fps: int, places: list[int]) -> None:
    assert timeline(video(quarters(count), rate=rate)).places(frames, fps) == places


def test_milliseconds_do_not_move_a_frame() -> None:
    """WebM has whole milliseconds: at 30 fps a frame begins at 67 ms, and 1/15 s is 66.7 ms."""
    shown = timeline(video(quarters(16), "webm", "libvpx-vp9", rate=30))
    assert (shown.constant, shown.fps) == (True, 30.0)
    assert shown.places(8, 15) == list(range(0, 16, 2))


def test_a_jittery_camera_has_a_constant_rate() -> None:
    times = [place / 30 + (0.004 if place % 3 == 1 else 0) for place in range(16)]
    shown = timeline(video(quarters(16), "matroska", times=times))
    assert shown.constant
    assert shown.fps == pytest.approx(30, rel=0.01)


def test_a_video_without_a_duration_is_read() -> None:
    data = video(quarters(9), "webm", "libvpx-vp9", piped=True)
    assert clip_length(data) == (9, 8.0)
    assert [column(frame) for frame in decode_clip(data)] == list(range(9))


@pytest.mark.parametrize(("container", "name"), [("gif", "GIF"), ("apng", "PNG")])
def test_an_animated_picture_is_no_video(container: str, name: str) -> None:
    data = video(quarters(3), container, container, {"gif": "rgb8", "apng": "rgb24"}[container])
    with pytest.raises(ValueError, match=rf"a picture \({name}\), not a video"):
        decode_clip(data)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("mp4", "libx265")],
)
def test_a_damaged_frame_is_no_copy_of_another(container: str, codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    data = without_frame(video(noise, container, codec), 4)
    for read in (timeline, decode_clip, anonymous_mp4, lambda data: frames_at(data, [7])):
        with pytest.raises(ValueError, match=r"a frame at 0\.\d+ s cannot be decoded|damaged"):
            read(data)


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx264", {"movflags": "faststart"}),
        ("matroska", "libx264", {}),
        ("avi", "mpeg4", {}),
        ("flv", "libx264", {}),
    ],
)
def test_a_truncated_file_is_refused(container: str, codec: str, options: dict[str, str], share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    data = video(noise, container, codec, options=options)
    with pytest.raises(ValueError, match=r"cut short|not a readable video|cannot be decoded"):
        timeline(data[: int(len(data) * share)])


def test_of_two_streams_the_default_one_is_shown() -> None:
    small, large = quarters(3, 32, 32), quarters(3)
    assert decode_clip(joined(large, small, [1])).shape == (3, 32, 32, 3)
    assert decode_clip(joined(large, small, [0])).shape == (3, 48, 64, 3)
    with pytest.raises(ValueError, match=r"2 video streams \(64x48, 32x32\), and not one default: keep one"):
        timeline(joined(large, small, [0, 1]))


def test_an_unknown_codec_is_named() -> None:
    data = video(quarters(3)).replace(b"avc1", b"zzz9")
    with pytest.raises(ValueError, match="no video stream in it, or none of a known codec"):
        timeline(data)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_damaged_headers_are_errors_in_one_line(container: str) -> None:
    whole, random = video(quarters(9), container, "mpeg4"), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, 600, 4):
            data[-place if random.random() < 0.5 else place] = random.integers(0, 256)
        found = None
        try:
            assert 0 < len(timeline(bytes(data)).times) <= 9
        except ValueError as error:
            found = str(error)
        assert "\n" not in (found or "")


def test_transparent_parts_are_white() -> None:
    clip = np.dstack([quarters(1)[0], np.full((48, 64), 255, np.uint8)])
    clip[:24, :, 3] = 0
    clip[24:, 32:, 3] = 51
    read = decode_clip(video(clip[None], "mov", "qtrle", "argb"))[0].astype(int)
    assert (read[:24] == 255).all()
    assert np.abs(read[40, 10] - [40, 40, 200]).max() <= 2
    assert np.abs(read[40, 50] - [244, 244, 212]).max() <= 2  # a fifth of 200, 200, 40 on white


def test_a_frame_of_a_minute_is_a_broken_time_stamp() -> None:
    with pytest.raises(ValueError, match="frame 1 stays for 90 s; at most 60 s are taken"):
        timeline(video(quarters(3), "matroska", times=[0, 0.1, 90.1]))


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    for text in (
        f"ffconcat version 1.0\nfile '{tmp_path}/other.mp4'\n",
        f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/other.mp4\n",
    ):
        with pytest.raises(ValueError, match=r"not a readable video|of another kind than mp4"):
            timeline(text.encode())


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_crop_by_the_container_is_refused(container: str) -> None:
    """ffmpeg and players cut the frames; decoders give them whole."""
    whole = video(quarters(4))
    assert clip_length(with_aperture(whole, 64, 48)) == (4, 8.0)  # all of it
    assert len(decode_clip(memoryview(whole))) == 4  # type: ignore[arg-type]  # what the exchange gives
    data = with_aperture(whole, 48, 32)
    data = data if container == "mp4" else cut(data, 0.0, container)
    for read in (timeline, decode_clip, anonymous_mp4, lambda data: frames_at(data, [0])):
        with pytest.raises(ValueError, match="its container crops the frames; write the file again: ffmpeg -i FILE"):
            read(data)


def test_a_crop_by_the_codec_is_made_to_the_pixel() -> None:
    """FFmpeg's libraries show some of the hidden columns unless they are told not to."""
    whole = video(quarters(4), options={"bf": "0"})
    data = filtered("h264_mp4toannexb,h264_metadata=crop_left=16:crop_top=8", whole)
    assert np.array_equal(decode_clip(data), decode_clip(whole)[:, 8:, 16:])


def test_pixels_that_change_their_shape_midway_are_refused() -> None:
    parts = [video(quarters(4), square=square, options={"bf": "0"}) for square in (Fraction(1), Fraction(2))]
    assert len(decode_clip(filtered("h264_mp4toannexb", parts[0], parts[0]))) == 8
    with pytest.raises(ValueError, match="changes its size, turn, colours or shape of pixels midway"):
        timeline(filtered("h264_mp4toannexb", *parts))


def test_another_container_is_named() -> None:
    with pytest.raises(ValueError, match=r"of another kind than mp4, mov, mkv, .*: ffmpeg -i FILE clip.mp4"):
        timeline(video(quarters(4), "h264"))


def test_interlaced_frames_are_refused() -> None:
    data = video(quarters(4), options={"flags": "+ildct+ilme", "x264-params": "tff=1"})
    with pytest.raises(ValueError, match="interlaced: a frame shows two moments; deinterlace it: ffmpeg -i FILE -vf"):
        timeline(data)


def test_judges_get_a_file_only_if_every_decoder_shows_the_same() -> None:
    plain, turned = video(quarters(4)), video(quarters(4), matrix=matrix(0, 1, -1, 0))
    assert read_clip(plain).file == plain
    clip = read_clip(turned)
    assert clip.file is None
    assert np.abs(decode_clip(clip.mp4()).astype(int) - clip.frames).mean() < 2
    bare = anonymous_mp4(turned)
    assert timeline(bare).plain
    assert decode_clip(bare).shape == (4, 64, 48, 3)
