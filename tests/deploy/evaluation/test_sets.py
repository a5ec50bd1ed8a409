"""Metrics over all clips of a model, and controls of the judges."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.candidate_set.folder import read_set
from common.config import RunConfig, SetMetricConfig, load_config
from common.data.video import encode_mp4
from common.digests import digest
from common.errors import ConfigError
from common.images import encode_png
from common.messages import Prompt
from deploy.evaluation.figures import MeasuredModel, compare, measure
from deploy.evaluation.sets import compare_controls, measure_sets
from deploy.evaluation.tables import markdown, notes
from deploy.run_dir.progress import NullProgress, Plain
from rewarders.interface import Clip
from tests.support.candidates import group, make_set


class Lengths:
    """The number of clips, and the mean of their last frames."""

    outputs = ("clips", "brightness")

    def __init__(self, config: SetMetricConfig, device: str) -> None:
        self.refused = config.reference

    def measure(self, clips: Iterable[tuple[Clip, Prompt]]) -> dict[str, float]:
        if self.refused:
            raise ValueError("too few clips")
        read = [(clip.frames[-1].mean(), prompt.text) for clip, prompt in clips]
        return {"clips": float(len(read)), "brightness": float(np.mean([value for value, _ in read]))}


def moving(number: int) -> np.ndarray:
    """A square that moves over a grey background, uint8 [9, 48, 64, 3]."""
    frames = np.full((9, 48, 64, 3), 100, np.uint8)
    for place, frame in enumerate(frames):
        frame[10:30, 5 * place + number : 5 * place + number + 16] = 220
    return frames


@pytest.fixture
def model(tmp_path: Path) -> MeasuredModel:
    made = [group(number, [50.0, 60.0]) for number in range(2)]
    found = read_set(make_set(tmp_path / "set", made))
    for number, row in enumerate(list(found.rows.values())):
        (found.folder / row.clip).write_bytes(encode_mp4(moving(number), 8))
        (found.folder / str(row.first_frame)).write_bytes(encode_png(moving(number)[0]))
        found.rows[row.name] = row.model_copy(update={"clip_digest": digest((found.folder / row.clip).read_bytes())})
    return measure("ours", found, None)


def config(**flags: Any) -> RunConfig:
    return load_config(None, {key.replace("__", "."): str(value) for key, value in flags.items()})


def test_a_metric_sees_all_clips_of_a_model(model: MeasuredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewarders.set_metrics.registry.KINDS", {"lengths": "unused:unused"})
    monkeypatch.setattr("rewarders.set_metrics.registry.class_of", lambda kind, kinds: Lengths)
    said = io.StringIO()
    found = measure_sets([model], config(evaluation__metrics__mine__kind="lengths"), Plain(said))
    assert found["mine.clips"] == {"ours": 4.0}
    assert 100 < found["mine.brightness"]["ours"] < 130
    first, last = said.getvalue().splitlines()
    assert (first, last.split("  ")[0]) == ("mine of ours 0/4  0.00 clips/s", "mine of ours 4/4")
    with pytest.raises(ConfigError, match=r"evaluation.metrics.mine: ours: too few clips"):
        measure_sets(
            [model],
            config(evaluation__metrics__mine__kind="lengths", evaluation__metrics__mine__reference="x"),
            NullProgress(),
        )


def test_a_judge_that_prefers_the_frozen_clip_is_named(model: MeasuredModel) -> None:
    """The similarity of consecutive frames is 100 in a frozen clip; that of a moving one is lower."""
    judged = config(reward__path="", reward__judges__ssim__kind="frame_ssim", reward__judges__ssim__weight=1)
    controls = compare_controls(model, judged, 3, NullProgress())
    assert controls["ssim"]["frozen"]["clips"] == 3
    assert controls["ssim"]["frozen"]["control_mean"] == pytest.approx(100)
    assert controls["ssim"]["frozen"]["preferred"] == 1.0
    assert controls["ssim"]["flicker"]["preferred"] == 0.0
    found = compare([model], "ours")
    told = notes(replace(found, controls=controls, sets={"fvd": {"ours": 12.5}}))
    assert told[0] == "fvd over all clips: ours 12.500"
    (line,) = told[1:]
    assert line.startswith("ssim prefers the frozen clip in 100% of 3 cases (")
    assert compare_controls(model, judged, 0, NullProgress()) == {}
    assert markdown(found).splitlines()[-1].startswith("| appeal | 55.00")
