"""Results of the official VBench packages, in the form of their files, become figures of the exported clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from common.candidate_set.folder import read_set
from common.errors import ConfigError
from deploy.evaluation.figures import Evaluation, MeasuredModel, compare, measure
from deploy.evaluation.page import write_page
from deploy.evaluation.tables import latex, markdown
from deploy.evaluation.vbench import export_vbench
from deploy.evaluation.vbench_results import read_results
from tests.support.candidates import group, make_set

PROMPTS, CLIPS = 3, 2
SCALE = {"imaging_quality": 100}  # VBench writes this dimension's clips as 0..100, and its mean as 0..1


@pytest.fixture
def models(tmp_path: Path) -> list[MeasuredModel]:
    """Two models with two clips of each of three prompts, exported to tmp_path/vb."""
    made = [group(number, [50.0] * CLIPS) for number in range(PROMPTS)]
    sets = [
        read_set(make_set(tmp_path / label, made, weights)) for label, weights in (("a", "ab" * 16), ("b", "cd" * 16))
    ]
    found = [measure(label, one, None) for label, one in zip("ab", sets, strict=True)]
    export_vbench(tmp_path / "vb", found)
    return found


def official(file: Path, folder: Path, dimensions: Mapping[str, Sequence[Any]], clips: int = PROMPTS * CLIPS) -> str:
    """Writes what VBench writes: for each dimension its mean and, in the order of the folder, every clip's value."""
    content: dict[str, Any] = {}
    for dimension, values in dimensions.items():
        rows = [
            {"video_path": str(path), "video_results": value}
            for path, value in zip(sorted(folder.iterdir())[:clips], values, strict=True)
        ]
        content[dimension] = [fmean(values) / SCALE.get(dimension, 1), rows]
    file.write_text(json.dumps(content, indent=4))
    return str(file)


def same(place: Path, values: Mapping[str, float], number: int = 0) -> list[str]:
    """A file of each model, in which all clips have the same `values`, in VBench's units."""
    rows = {name: [value] * PROMPTS * CLIPS for name, value in values.items()}
    return [official(place / f"{label}-{number}.json", place / "vb" / label, rows) for label in "ab"]


def compared(models: Sequence[MeasuredModel], *files: str) -> tuple[Evaluation, list[str]]:
    read, notes = read_results(models, files)
    return compare(read, "a"), notes


def means(found: Evaluation, label: str, *dimensions: str) -> list[float]:
    return [found.figures[f"vbench.{name}"][label]["mean"] for name in dimensions]


def test_every_dimension_becomes_a_figure_in_percent(models: list[MeasuredModel], tmp_path: Path) -> None:
    a = {
        "subject_consistency": [0.9, 0.8, 0.7, 0.7, 0.5, 0.5],
        "dynamic_degree": [True, False, True, True, False, False],
        "imaging_quality": [60.0, 62.0, 70.0, 70.0, 40.0, 50.0],
    }
    b = {
        "subject_consistency": [0.95, 0.85, 0.7, 0.7, 0.4, 0.4],
        "dynamic_degree": [True] * 6,
        "imaging_quality": [61.0, 61.0, 72.0, 72.0, 45.0, 45.0],
    }
    files = [official(tmp_path / f"{label}.json", tmp_path / "vb" / label, one) for label, one in (("a", a), ("b", b))]
    found, notes = compared(models, *files)
    assert notes == []
    assert list(found.figures) == ["appeal", *(f"vbench.{name}" for name in a)]
    assert means(found, "a", *a) == pytest.approx([(85 + 70 + 50) / 3, 50, (61 + 70 + 45) / 3])
    assert means(found, "b", *b) == pytest.approx([(90 + 70 + 40) / 3, 100, (61 + 72 + 45) / 3])
    subject, moving = (found.figures[f"vbench.{name}"]["b"] for name in ("subject_consistency", "dynamic_degree"))
    assert subject["change"]["mean"] == pytest.approx((5 + 0 - 10) / 3)
    assert subject["change"]["low"] == pytest.approx(-10)  # 1 resample in 27 has the worst prompt three times
    assert [subject[name] for name in ("win", "tie", "lose")] == pytest.approx([1 / 3] * 3)
    assert [moving[name] for name in ("win", "tie", "lose")] == pytest.approx([2 / 3, 1 / 3, 0])
    assert "| vbench.dynamic_degree | 50.00 | 100.00 (+50.00 [+0.00, +100.00]) |" in markdown(found)
    assert r"vbench.dynamic\_degree" in latex(found)
    assert "<td>vbench.imaging_quality</td>" in write_page(tmp_path, found, models).read_text()


def test_dimensions_may_come_in_a_file_each_and_as_i2v_writes_them(models: list[MeasuredModel], tmp_path: Path) -> None:
    """VBench-I2V names the image too, and puts the means of the camera's directions between mean and clips."""
    files = same(tmp_path, {"aesthetic_quality": 0.5})
    for label in "ab":
        rows = [
            {"image_path": "x.png", "video_path": str(path), "video_results": 1.0}
            for path in (tmp_path / "vb" / label).iterdir()
        ]
        content = {"i2v_subject": [1.0, rows], "camera_motion": [1.0, {"pan_left": 1.0, "static": float("nan")}, rows]}
        files.append(str(tmp_path / f"{label}-i2v.json"))
        Path(files[-1]).write_text(json.dumps(content))
    found, notes = compared(models, *files)
    assert notes == []
    assert means(found, "b", "aesthetic_quality", "i2v_subject", "camera_motion") == pytest.approx([50, 100, 100])


def test_a_prompt_without_all_results_is_left_out_of_that_dimension_only(
    models: list[MeasuredModel], tmp_path: Path
) -> None:
    """VBench measures most dimensions on some of its prompts only."""
    a = official(tmp_path / "a.json", tmp_path / "vb" / "a", {"scene": [0.1] * 4}, clips=4)
    b = official(tmp_path / "b.json", tmp_path / "vb" / "b", {"scene": [0.2] * 6})
    found, (note,) = compared(models, a, b)
    assert means(found, "a", "scene") + means(found, "b", "scene") == pytest.approx([10, 20])
    assert found.counted == {"appeal": 3, "vbench.scene": 2}
    assert note == "a: no VBench result for 2 of 6 clips (scene): 'a cat walks 2-0.mp4', 'a cat walks 2-1.mp4'"
    assert "| vbench.scene (2 of 3 prompts) | 10.00 | 20.00 (+10.00 [+10.00, +10.00]) |" in markdown(found)
    assert "vbench.scene (2 of 3 prompts)" in latex(found)
    assert "vbench.scene (2 of 3 prompts)" in write_page(tmp_path, found, models).read_text()
    assert "vbench.scene" not in found.changes["b"][found.prompts[2]]


def test_a_clip_that_was_not_exported_is_named(models: list[MeasuredModel], tmp_path: Path) -> None:
    (tmp_path / "vb" / "b" / "another-0.mp4").write_bytes(b"mp4")
    a = official(tmp_path / "a.json", tmp_path / "vb" / "a", {"scene": [0.1] * 6})
    b = official(tmp_path / "b.json", tmp_path / "vb" / "b", {"scene": [0.1] * 7}, clips=7)
    found, (note,) = compared(models, a, b)
    assert note == f"{tmp_path}/b.json: 1 clip that b does not have: 'another-0.mp4'"
    assert found.counted["vbench.scene"] == 3


def test_a_label_before_the_file_names_the_model(models: list[MeasuredModel], tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "vb" / label).rename(tmp_path / "vb" / f"other-{label}")
    a, b = (official(tmp_path / f"{one}.json", tmp_path / "vb" / f"other-{one}", {"scene": [0.1] * 6}) for one in "ab")
    with pytest.raises(
        ConfigError, match=r"folder 'other-b', and no model is called that \(a, b\); write LABEL=/.*b.json"
    ):
        read_results(models, [f"a={a}", b])
    with pytest.raises(ConfigError, match=r"no model is called 'c'"):
        read_results(models, [f"c={a}"])
    found, notes = compared(models, f"a={a}", f"b={b}")
    assert notes == []
    assert found.counted["vbench.scene"] == 3


def test_the_same_result_twice_counts_once_and_two_results_are_refused(
    models: list[MeasuredModel], tmp_path: Path
) -> None:
    a, b = same(tmp_path, {"scene": 0.1})
    assert compared(models, a, b, a)[0].counted["vbench.scene"] == 3
    again = official(tmp_path / "again.json", tmp_path / "vb" / "a", {"scene": [0.1] * 5 + [0.3]})
    with pytest.raises(
        ConfigError, match=r"again.json: scene: a second result for 'a cat walks 2-1.mp4' of a, 30 after"
    ):
        read_results(models, [a, b, again])


def test_results_of_other_clips_are_refused(models: list[MeasuredModel], tmp_path: Path) -> None:
    """The exported file has changed since: the results are those of another model."""
    a, _ = same(tmp_path, {"scene": 0.1})
    (tmp_path / "vb" / "a" / "a cat walks 1-0.mp4").write_bytes(b"of another model")
    with pytest.raises(ConfigError, match=r"a-0.json: .*walks 1-0.mp4 is not the clip of a: export the clips again"):
        read_results(models, [a])


def test_results_whose_clips_have_moved_away_are_read(models: list[MeasuredModel], tmp_path: Path) -> None:
    """VBench may have run on another machine."""
    files = same(tmp_path, {"scene": 0.1})
    (tmp_path / "vb").rename(tmp_path / "elsewhere")
    assert compared(models, *files)[0].counted["vbench.scene"] == 3


CLIP = '"video_path": "vb/a/a cat walks 0-0.mp4"'
NUMBER = "must be a finite number"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read: Expecting property name"),
        ('[{"prompt_en": "a"}]', "the list of clips; the results are in the file that ends with _eval_results.json"),
        ("{}", "no result of any dimension"),
        ('{"scene": 0.5}', "scene: must be a mean and the list of the clips' results"),
        (f'{{"scene": [0.5, [{{{CLIP}}}]]}}', "scene: result 1: must have video_path and video_results"),
        (f'{{"scene": [0.5, [{{{CLIP}, "video_results": NaN}}]]}}', f"result 1: video_results = nan: {NUMBER}"),
        (f'{{"scene": [0.5, [{{{CLIP}, "video_results": "x"}}]]}}', f"result 1: video_results = 'x': {NUMBER}"),
        (f'{{"scene": [0.5, [{{{CLIP}, "video_results": 0.7}}]]}}', "the mean is 0.5, but that of the clips is 0.7"),
        ('{"scene": [0.5, [{"video_path": "vb/a/none.mp4", "video_results": 0.5}]]}', "no clip of a is in it"),
    ],
)
def test_bad_files(models: list[MeasuredModel], tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_results(models, [str(file)])
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(models: list[MeasuredModel], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json: cannot be read: No such file"):
        read_results(models, [str(tmp_path / "none.json")])


PAPER = (
    "i2v_subject",
    "i2v_background",
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)


@pytest.mark.parametrize(
    ("total", "row"),
    [
        (85.73, (95.20, 93.15, 93.76, 95.49, 98.70, 57.33, 53.95, 68.44)),
        (85.72, (95.53, 93.37, 94.12, 95.63, 98.87, 47.33, 54.55, 69.60)),
        (86.24, (96.35, 94.11, 95.20, 96.41, 99.13, 43.33, 54.28, 68.98)),
        (85.81, (95.43, 93.29, 94.16, 95.54, 98.58, 56.00, 54.01, 68.45)),
    ],
)
def test_the_total_is_that_of_the_gapo_papers_tables(
    models: list[MeasuredModel], tmp_path: Path, total: float, row: Sequence[float]
) -> None:
    """Tables 1 and 6: all four totals follow from their eight dimensions, without camera motion."""
    values = {name: SCALE.get(name, 1) * value / 100 for name, value in zip(PAPER, row, strict=True)}
    found, _ = compared(models, *same(tmp_path, values))
    assert means(found, "a", "total") == pytest.approx([total], abs=0.006)


def test_scores_by_hand(models: list[MeasuredModel], tmp_path: Path) -> None:
    """Normalised, background consistency 0.63075 is one half, and motion smoothness 0.85175 too."""
    seven = {
        "subject_consistency": 1.0,
        "background_consistency": 0.63075,
        "temporal_flickering": 1.0,
        "motion_smoothness": 0.85175,
        "aesthetic_quality": 0.5,
        "imaging_quality": 50.0,
        "dynamic_degree": 1.0,
    }
    files = same(tmp_path, seven)
    found, _ = compared(models, *files)
    assert means(found, "a", "quality") == pytest.approx([100 * (1 + 0.5 + 1 + 0.5 + 0.5 + 0.5 + 0.5) / 6.5])
    assert "vbench.total" not in found.figures
    files += same(tmp_path, {"i2v_subject": 1.0, "i2v_background": 0.63075, "camera_motion": 0.0}, number=1)
    found, _ = compared(models, *files)
    quality, i2v = (1 + 0.5 + 0.5 + 0.5 + 0.5 + 0.5) / 5.5, (1 + 0.5 + 0) / 2.1  # VBench-I2V has no flickering
    assert means(found, "a", "quality", "i2v", "total") == pytest.approx(
        [100 * quality, 100 * i2v, 50 * (quality + i2v)]
    )


def test_without_a_dimension_there_is_no_total(models: list[MeasuredModel], tmp_path: Path) -> None:
    values = {name: SCALE.get(name, 1) * 0.5 for name in PAPER[:-1]}
    found, _ = compared(models, *same(tmp_path, values))
    assert not {"vbench.total", "vbench.quality", "vbench.i2v"} & found.figures.keys()
