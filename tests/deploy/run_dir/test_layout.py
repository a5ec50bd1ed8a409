"""A run folder belongs to one configuration and to one process at a time."""

from __future__ import annotations

import json
import os

import pytest

from common.config import load_config
from common.errors import ConfigError, CorruptDataError, NotFoundError
from common.exchange.storage.run_lock import lock_owner
from deploy.run_dir import layout


def config(root, **flags):
    return load_config(None, {"root": str(root), "name": "r"} | {name: str(value) for name, value in flags.items()})


def with_work(folder):
    """A ledger that the run itself has to look at."""
    (folder / "ledger.sqlite").write_bytes(b"damaged" * 100)


def test_claim_makes_the_folder_and_keeps_the_resolved_configuration(tmp_path):
    wanted = config(tmp_path / "deep", steps=7)
    with layout.claim(wanted) as folder:
        assert folder == tmp_path / "deep" / "r"
        assert load_config(folder / "config.toml") == wanted
        assert lock_owner(folder) == os.getpid()
    assert lock_owner(folder) is None


def test_a_second_process_gets_an_error_that_names_the_owner(tmp_path):
    wanted = config(tmp_path)
    with (
        layout.claim(wanted),
        pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}"),
        layout.claim(wanted),
    ):
        pass
    with layout.claim(wanted):  # and it is free again afterwards
        pass


def test_steps_verify_and_evaluation_may_change(tmp_path):
    with layout.claim(config(tmp_path, steps=4)) as folder:
        with_work(folder)
    changed = config(tmp_path, steps=9, verify=True, **{"evaluation.prompts": 5})
    with layout.claim(changed) as folder:
        assert load_config(folder / "config.toml") == changed


@pytest.mark.parametrize(
    "keys",
    [
        {"learner.lr_schedule": "linear"},
        {"learner.lr_schedule": "cosine"},
        {"learner.lr_schedule": "constant_with_warmup", "learner.warmup_ratio": 0.5},
    ],
)
def test_steps_may_not_change_where_the_learning_rate_depends_on_them(tmp_path, keys):
    with layout.claim(config(tmp_path, steps=4, **keys)) as folder:
        with_work(folder)
    layout.check_belongs(folder, config(tmp_path, steps=4, verify=True, **keys))
    with pytest.raises(ConfigError, match=r"steps \(4 there, 9 now\).*same values \(verify, name, root, "):
        layout.check_belongs(folder, config(tmp_path, steps=9, **keys))


def test_memory_settings_may_change_unless_they_change_clips(tmp_path):
    def smaller(**flags):
        less = {"sampler.micro_batch": 1, "sampler.offload": True, "reward.batch": 1}
        return config(tmp_path, **less, **{"learner.micro_batch": 1, "learner.gradient_checkpointing": "full"}, **flags)

    with layout.claim(config(tmp_path)) as folder:
        with_work(folder)
    with layout.claim(smaller()) as folder:
        assert load_config(folder / "config.toml") == smaller()
    with pytest.raises(ConfigError, match=r"sampler\.vae_tiling \(False there, True now\)"):
        layout.check_belongs(folder, smaller(**{"sampler.vae_tiling": True}))


def test_with_a_cache_the_micro_batch_decides_what_is_skipped(tmp_path):
    with layout.claim(config(tmp_path, **{"sampler.cache_threshold": 0.1})) as folder:
        with_work(folder)
    with pytest.raises(ConfigError, match=r"sampler\.micro_batch \(4 there, 1 now\)"):
        layout.check_belongs(folder, config(tmp_path, **{"sampler.cache_threshold": 0.1, "sampler.micro_batch": 1}))


def test_another_configuration_is_refused_by_the_names_of_its_keys(tmp_path):
    with layout.claim(config(tmp_path, seed=1)) as folder:
        with_work(folder)
    with pytest.raises(ConfigError) as caught, layout.claim(config(tmp_path, seed=2, **{"learner.lr": 1e-3})):
        pass
    line = str(caught.value)
    assert "learner.lr (5e-06 there, 0.001 now), seed (1 there, 2 now)" in line
    assert "choose another --name or the same values (steps, verify, name, root, mode, evaluation.*, " in line
    assert line.endswith(", learner.gradient_checkpointing, learner.reference may change)")
    assert load_config(tmp_path / "r" / "config.toml").seed == 1


def test_a_moved_run_is_the_same_run(tmp_path):
    with layout.claim(config(tmp_path / "a")) as folder:
        with_work(folder)
    (tmp_path / "a").rename(tmp_path / "b")
    with layout.claim(config(tmp_path / "b")) as folder:
        assert load_config(folder / "config.toml").root == tmp_path / "b"


def test_a_folder_that_cannot_be_created_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be created"), layout.claim(config(tmp_path / "file")):
        pass


def test_runs_are_found_by_path_and_by_name(tmp_path):
    with layout.claim(config(tmp_path)) as folder:
        pass
    assert layout.find_run(str(folder))[0] == folder
    assert layout.find_run("r", root=tmp_path)[0] == folder
    with pytest.raises(NotFoundError, match="no run folder"):
        layout.find_run("other", root=tmp_path)


def test_results_are_written_atomically_and_a_broken_one_is_named(tmp_path):
    assert layout.read_result(tmp_path) is None
    layout.write_result(tmp_path, {"step": 3})
    assert layout.read_result(tmp_path) == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    (tmp_path / "result.json").write_text(json.dumps({"step": 3})[:-1])
    with pytest.raises(CorruptDataError, match=r"result\.json: not valid JSON"):
        layout.read_result(tmp_path)
