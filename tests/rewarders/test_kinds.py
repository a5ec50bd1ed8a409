"""How a configuration's class is found, and what is said when it is not."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import common
from common.config import JudgeConfig
from common.errors import ConfigError
from common.messages import Prompt
from rewarders.judges.registry import open_judge
from rewarders.kinds import class_of

ROOT = Path(__file__).parents[2]


def test_a_module_that_is_not_on_the_path_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ConfigError, match=r"No module named 'no_such_reward'; Python looks in PYTHONPATH, .*PYTHONPATH=\."
    ):
        class_of("no_such_reward:Red", {})


@pytest.mark.parametrize(
    "line", ["import common.palette", "from common.palette import RED", "from common import palette"]
)
def test_a_hidden_package_of_the_users_is_named_with_both_places(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "palette.py").write_text("RED = 1\n")
    (tmp_path / "hidden_reward.py").write_text(f"{line}\nclass Red: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError) as caught:
        class_of("hidden_reward:Red", {})
    assert f"{Path(common.__file__).parent}, which hides {tmp_path / 'common'}: rename yours" in str(caught.value)


@pytest.mark.parametrize("package", ["common", "deploy", "rewarders"])
def test_a_project_with_a_package_of_the_same_name_can_run_douga(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "red.py").write_text("class Red:\n    dimension, digest = 'red', 'red-1'\n")
    code = (
        "import os, sys; sys.path.append(os.environ['DOUGA']); import douga; sys.argv = ['douga', '--version']\n"
        "try: douga.main()\n"
        "except SystemExit: pass\n"
        "from rewarders.kinds import class_of; print(class_of('red:Red', {}).digest, os.environ['PYTHONPATH'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", "DOUGA": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == f"red-1 {ROOT}:."


class Threshold:
    """Scores by an option."""

    dimension, digest = "red", "red-1"

    def __init__(self, judge: JudgeConfig, device: str) -> None:
        self.options = judge.options

    def score(self, clips: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
        """See `rewarders.interface.Reward`."""
        return [float(self.options["threshold"])] * len(clips)


def test_options_reach_the_class_and_its_digest() -> None:
    kind = f"{__name__}:Threshold"
    configs = [JudgeConfig(kind=kind, options=options) for options in ({}, {"a": 1}, {"a": 2}, {"a": 1.0}, {"b": 1})]
    assert len({open_judge("red", config).digest for config in configs}) == 5
    two = [JudgeConfig(kind=kind, options=options) for options in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert len({open_judge("red", config).digest for config in two}) == 1
    assert class_of(kind, {})(configs[1], "cpu").options == {"a": 1}


def test_a_built_in_kind_takes_no_options() -> None:
    with pytest.raises(ConfigError, match=r"reward\.judges\.a: options: kind 'frame_ssim' takes none"):
        open_judge("a", JudgeConfig(kind="frame_ssim", options={"window": 7}))
