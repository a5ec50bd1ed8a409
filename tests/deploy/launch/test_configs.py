"""The configurations in deploy/launch/configs: each loads, and fits on the GPU that it names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from deploy.cli.main import main
from deploy.planning.memory import GPUS
from deploy.planning.model_sizes import family_sizes
from deploy.planning.plan import plan

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "deploy" / "launch" / "configs").glob("*.toml"))


def command_of(config: Path) -> list[str]:
    """The arguments of the `douga plan` command in the first lines of the configuration."""
    lines = [line for line in config.read_text().splitlines() if line.startswith("# douga plan ")]
    return shlex.split(lines[0])[2:] if lines else []


def test_every_configuration_for_gpus_names_its_plan() -> None:
    assert [config.name for config in CONFIGS if not command_of(config)] == ["toon.toml"]  # on the CPU
    assert len(CONFIGS) >= 7


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.name != "toon.toml"], ids=lambda c: c.stem)
def test_every_configuration_fits_on_the_gpu_that_it_names(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = command_of(config)
    assert words[1] == f"deploy/launch/configs/{config.name}"
    assert main(words) == 0
    assert words[words.index("--gpu") + 1] in capsys.readouterr().out
    loaded = load_config(config)
    assert loaded.name == config.stem.removeprefix("a800-") or loaded.name == config.stem
    cluster = loaded.cluster
    if loaded.mode == "cluster" and cluster.learner.count == 1:  # all roles on one GPU
        shares = [cluster.sampler.gpus * cluster.sampler.count, cluster.rewarder.gpus, cluster.learner.gpus]
        assert sum(shares) <= 1


def test_the_24_gb_configuration_states_what_does_not_fit() -> None:
    config = load_config(ROOT / "deploy" / "launch" / "configs" / "24gb-lora.toml")
    small_gpu = dict.fromkeys(("sampler", "rewarder", "learner"), GPUS["RTX4090-24GB"])
    resident = config.sampler.model_copy(update={"offload": False, "vae_tiling": False})
    for family, other in (("2b", config.model_copy(update={"sampler": resident})), ("5b-i2v", config)):
        with pytest.raises(ConfigError, match=r"process: .* per GPU of 24"):
            plan(other, family_sizes(family), small_gpu, 0.4)
