"""The configuration: order of precedence, one clear line for every mistake, and the way to disk and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.config import (
    AlgorithmConfig,
    RunConfig,
    differences,
    keys,
    leaves,
    load_config,
    may_change,
    parse_config,
    to_toml,
)
from common.config.algorithm import BUILT_IN
from common.config.loading import RENAMED
from common.errors import ConfigError
from learner.algorithms.gapo import Gapo


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = write(tmp_path, "steps = 7\n[learner]\nlr = 1e-4\n[algorithm]\nalpha = 3.0\n")
    config = load_config(file, {"learner.lr": "2e-4", "learner.batch-size": "5", "verify": "true"})
    assert (config.steps, config.algorithm.alpha, config.algorithm.beta) == (7, 3.0, 5000.0)
    assert (config.learner.lr, config.learner.batch_size, config.verify) == (2e-4, 5, True)


def test_derived_values():
    config = load_config(None, {"learner.batch_size": 8, "learner.steps_per_push": 2, "root": "r", "name": "n"})
    assert config.groups_per_push == 16
    assert config.folder == Path("r/n")


def test_a_list_is_given_with_commas():
    config = load_config(None, {"learner.lora.targets": "to_q, to_v"})
    assert config.learner.lora.targets == ("to_q", "to_v")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"sampler.candidates": "1"}, "sampler.candidates = 1: algorithm gapo needs 2 or more"),
        (
            {"algorithm.name": "refl", "learner.image_noise": "on"},
            "learner.image_noise = True: algorithm refl denoises clips with their whole condition; remove the key",
        ),
        ({"algorithm.alpha": "0.9"}, "--algorithm.alpha = '0.9': Input should be greater than 1"),
        ({"exchange.max-lag": "-1"}, "--exchange.max-lag = '-1': Input should be greater than or equal to 0"),
        ({"learner.lr": "fast"}, "--learner.lr = 'fast': Input should be a valid number"),
        ({"learner.lr": "nan"}, "--learner.lr = 'nan': Input should be a finite number"),
        ({"algorithm.name": "ppo"}, "--algorithm.name: name = 'ppo': allowed are gapo, dpo, sft"),
        ({"sampler.steps": "7"}, "--sampler.steps = '7': must divide the scheduler's 1000 training timesteps"),
        ({"sampler.steps": "30"}, "1000 training timesteps; nearest: 25 or 40"),
        ({"sampler.steps": "4000"}, "1000 training timesteps; nearest: 1000"),
        ({"algorithm.alhpa": "2"}, "--algorithm.alhpa: unknown key; did you mean algorithm.alpha?"),
        (
            {"algorithm.name": "sft", "algorithm.beta": "2"},
            "--algorithm.beta: unknown key; allowed here: alpha, name, weight",
        ),
        ({"learner.alpha": "2"}, "--learner.alpha: learner.alpha was renamed to algorithm.alpha"),
        ({"learner.pairs_per_step": "2"}, "learner.pairs_per_step was renamed to learner.batch_size"),
        ({"guard.every": "2"}, "guard.every was renamed to guardrails.every_pushes"),
        ({"guard.patience": "2"}, "guard.patience was renamed to guardrails.patience"),
        ({"lr": "2"}, "--lr: unknown key; did you mean learner.lr?"),
        ({"lerner.lr": "2"}, "--lerner.lr: unknown key; did you mean learner?"),
        ({"learner": "2"}, "--learner: a section, not a value; set one of learner.adam_beta1, "),
        ({"steps.more": "2"}, "--steps.more"),
        (
            {"learner.checkpoint_every": "5", "learner.steps_per_push": "2"},
            "checkpoint_every = 5 must be a multiple of steps_per_push = 2",
        ),
        (
            {"learner.lr_schedule": "cosin"},
            "--learner.lr_schedule = 'cosin': Input should be 'constant', 'constant_with_warmup', 'linear', 'cosine', "
            "'cosine_with_min_lr' or 'inverse_sqrt'",
        ),
        (
            {"learner.warmup_steps": "5"},
            "warmup_steps = 5: lr_schedule = 'constant' has no warm-up; use 'constant_with_warmup'",
        ),
        (
            {"learner.lr_schedule": "linear", "learner.warmup_steps": "5", "learner.warmup_ratio": "0.1"},
            "warmup_ratio = 0.1: warmup_steps is set as well; remove one of the two",
        ),
        (
            {"learner.lr_schedule": "cosine", "learner.min_lr_ratio": "0.1"},
            "min_lr_ratio = 0.1: above 0 with lr_schedule = 'cosine_with_min_lr', else 0; it is 'cosine'",
        ),
        ({"learner.lr_schedule": "cosine_with_min_lr"}, "min_lr_ratio = 0: above 0 with lr_schedule = "),
        ({"learner.adam_beta2": "1"}, "--learner.adam_beta2 = '1': Input should be less than 1"),
        ({"name": "../up"}, "--name = '../up'"),
        (
            {
                f"reward.weights.{name}": "0"
                for name in ("smoothness", "motion", "appeal", "text", "image", "character")
            },
            "at least one weight must be above 0",
        ),
    ],
)
def test_a_wrong_flag_gets_one_line(flags, line):
    with pytest.raises(ConfigError) as caught:
        load_config(None, flags)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[algorithm]\nbeta = 0\n", "algorithm.beta in {file} = 0: Input should be greater than 0"),
        ("[learner]\ngama = 1\n", "learner.gama in {file}: unknown key"),
        ("[rewards]\npath = 'x'\n", "rewards in {file}: unknown key; did you mean reward?"),
        ("learner = 3\n", "learner in {file}: a section, not a value"),
        ("steps = \n", "{file}: not valid TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, line):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert line.format(file=file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_not_content(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("steps = 3\r\n", "utf-8-sig")
    assert load_config(file).steps == 3


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such configuration file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(binary)


def test_a_flag_below_a_value_of_the_file_is_refused(tmp_path):
    file = write(tmp_path, "learner = 3\n")
    with pytest.raises(ConfigError, match="'learner' is a value, not a section"):
        load_config(file, {"learner.lr": "1"})


def test_toml_and_back_is_the_same_configuration(tmp_path):
    flags = {
        "root": str(tmp_path / 'a "quoted" \\ ütf'),
        "learner.lr": "5e-6",
        "verify": "yes",
        "learner.train": "lora",
    }
    config = load_config(None, flags)
    assert load_config(write(tmp_path, to_toml(config))) == config


def test_differences_name_the_keys_and_both_values():
    old = load_config(None, {"learner.lr": "1e-5", "steps": "10"})
    new = load_config(None, {"learner.lr": "2e-5", "steps": "10"})
    assert differences(old, new) == {"learner.lr": (1e-5, 2e-5)}
    assert differences(old, old) == {}


def test_every_key_is_listed_and_described():
    listed = list(keys())
    judges = {"reward.judges.NAME.kind": "x", "reward.judges.NAME.outputs.NAME": "1"}
    judges |= {f"{table}.judges.NAME.options.NAME": "x" for table in ("reward", "guardrails")}
    judges |= {"guardrails.judges.NAME.kind": "x", "evaluation.metrics.NAME.kind": "x"}
    found = set(leaves(load_config(None, judges).model_dump()))
    for name in BUILT_IN:
        section = load_config(None, {"algorithm.name": name}).algorithm
        found |= {f"algorithm.{key}" for key in section.model_dump()}
    assert {key.name for key in listed} == found
    assert [key.name for key in listed if not key.description] == []
    kinds = {key.name: key.kind for key in listed}
    assert kinds["algorithm.alpha"] == "float > 1.0"
    assert kinds["learner.caption_drop"] == "float >= 0 and <= 1"


def test_configuration_and_messages_import_no_torch():
    code = (
        "import sys, common.config, common.messages, common.exchange.api; common.config.load_config();"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


JUDGES = """
[reward]
path = ""
[reward.judges.vs]
kind = "videoscore"
path = "/models/VideoScore"
size = [448, 448]
frames = 16
[reward.judges.vs.outputs]
visual = 2.0
[reward.judges.away]
kind = "remote"
url = "http://127.0.0.1:8100, http://127.0.0.1:8101/"
"""


def test_judges_in_a_file_and_as_flags(tmp_path):
    flags = {
        "reward.judges.vs.weight": "0.5",
        "reward.judges.mine.kind": "my.judges:Mine",
        "reward.judges.mine.size": "8,16",
    }
    judges = load_config(write(tmp_path, JUDGES), flags).reward.judges
    assert (judges["vs"].size, judges["vs"].outputs, judges["vs"].weight) == ((448, 448), {"visual": 2.0}, 0.5)
    assert judges["away"].servers == ("http://127.0.0.1:8100", "http://127.0.0.1:8101")
    assert (judges["mine"].kind, judges["mine"].size) == ("my.judges:Mine", (8, 16))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.3", 0.3), ("3", 3), ("-1", -1), ("true", True), ("[1, 2.5]", [1, 2.5]), ("red", "red"), ('"0.3"', "0.3"),
        ("", ""), ("a, b", "a, b"), ("2026-01-01", "2026-01-01"), ("True", "True"), ("3 # x", 3),
        ("1\nx = 2", "1\nx = 2"), ("[", "["), ("{a = 1}", "{a = 1}"),
    ],
)  # fmt: skip
def test_an_option_on_the_command_line_is_a_toml_value_or_a_text(tmp_path, text, value):
    flags = {"reward.judges.red.kind": "mine:Red", "reward.judges.red.options.threshold": text}
    config = load_config(None, flags)
    found = config.reward.judges["red"].options["threshold"]
    assert (found, type(found)) == (value, type(value))
    assert load_config(write(tmp_path, to_toml(config))) == config


def test_options_in_a_file_and_over_it(tmp_path):
    file = write(
        tmp_path, '[reward.judges.red]\nkind = "mine:Red"\n[reward.judges.red.options]\nlimit = 2\ncolour = "red"\n'
    )
    config = load_config(file, {"reward.judges.red.options.limit": "0.5"})
    assert config.reward.judges["red"].options == {"limit": 0.5, "colour": "red"}
    assert differences(load_config(file), config) == {"reward.judges.red.options.limit": (2, 0.5)}
    flags = {"reward.judges.red.options.url": "http://x"}
    assert not may_change("reward.judges.red.options.url", load_config(file, flags))


def test_judges_are_written_to_toml_and_named_in_differences(tmp_path):
    config = load_config(write(tmp_path, JUDGES))
    assert load_config(write(tmp_path, to_toml(config))) == config
    other = differences(RunConfig(), config)
    assert other["reward.judges.vs.frames"] == (None, 16)
    assert other["reward.path"] == ("toon", "")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"reward.judges.vs.kid": "x"}, "--reward.judges.vs.kid: unknown key; did you mean reward.judges.vs.kind?"),
        ({"reward.judges.vs.weight": "1"}, "reward.judges.vs.kind"),
        (
            {"reward.judges.motion.kind": "x"},
            "a judge's name starts with a letter, has only letters, digits and _, and is not one of smoothness",
        ),
        ({"reward.judges.a.kind": "x", "reward.judges.a.size": "8"}, "size = 8: must be height,width in pixels"),
        ({"reward.judges.a.kind": "x", "reward.judges.a.low": "2"}, "low = 2, high = 0: low must be below high"),
        ({"reward.judges.a": "x"}, "reward.judges.a.kind"),
        ({"reward.judges.a.kind": "x", "reward.judges.a.options.b": "nan"}, "b = nan: must be a text, a finite number"),
        ({"reward.judges.a.kind": "x", "reward.judges.a.options.1": "2"}, "'1': an option's name starts with a letter"),
        ({"reward.path": ""}, "nothing scores the clips"),
        ({"reward.feedback": "beauty"}, "feedback = 'beauty': must be one of all, global, smoothness"),
        ({"reward.preset": "mine"}, "preset = 'mine': must be one of no_dynamics, more_motion"),
        ({"reward.preset": "equal", "reward.weights.text": "-1"}, "--reward.weights.text = '-1'"),
        ({"reward.preset": "equal", "reward.weights": "2"}, "--reward.weights: a section, not a value"),
    ],
)
def test_a_wrong_judge_gets_one_line(flags, line):
    with pytest.raises(ConfigError) as caught:
        load_config(None, flags)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


class Mine(AlgorithmConfig):
    """A section of somebody's own algorithm."""

    strength: float = 2.0


class Own(Gapo):
    Config = Mine


def test_a_custom_algorithm_adds_its_keys(tmp_path):
    name = f"{__name__}:Own"
    config = load_config(None, {"algorithm.name": name, "algorithm.strength": "3"})
    assert config.algorithm == Mine(name=name, strength=3.0)
    assert load_config(write(tmp_path, to_toml(config))) == config
    with pytest.raises(ConfigError, match=r"--algorithm\.strenght: unknown key"):
        load_config(None, {"algorithm.name": name, "algorithm.strenght": "3"})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nowhere:Own", "cannot be imported: No module named 'nowhere'"),
        ("common.errors:Missing", "common.errors has no Algorithm called Missing"),
        ("common.errors:ConfigError", "common.errors has no Algorithm called ConfigError"),
    ],
)
def test_invalid_algorithms_are_refused(name, line):
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"algorithm.name": name})
    assert line in str(caught.value)


def test_a_flag_that_names_another_algorithm_drops_the_files_keys_for_the_old_one(tmp_path):
    file = write(tmp_path, '[algorithm]\nname = "gapo"\nalpha = 3.0\nbeta = 50.0\n')
    section = load_config(file, {"algorithm.name": "dpo"}).algorithm
    assert section.model_dump() == {"name": "dpo", "beta": 50.0, "refresh_every": 0}
    with pytest.raises(ConfigError, match=r"--algorithm\.alpha: unknown key"):  # a flag is meant
        load_config(file, {"algorithm.name": "dpo", "algorithm.alpha": "2"})
    assert load_config(file, {"algorithm.name": "gapo"}).algorithm.model_dump()["alpha"] == 3.0


# Values derived from other keys.


@pytest.mark.parametrize(
    ("text", "flags", "candidates"),
    [
        ('pairs = "rated.jsonl"', {}, 2),
        ('pairs = "rated.jsonl"\n[sampler]\nsteps = 20', {}, 2),
        ("[sampler]\ncandidates = 4", {"pairs": "rated.jsonl"}, 2),  # of the file's other prompts
        ("[sampler]\ncandidates = 8", {"pairs": ""}, 8),  # as `douga collect` sets it
        ('pairs = "rated.jsonl"\n[sampler]\ncandidates = 3', {"pairs": ""}, 3),
        ('pairs = "rated.jsonl"\n[sampler]\ncandidates = 3', {}, 3),  # refused where the pairs are opened
        ('pairs = "rated.jsonl"', {"sampler.candidates": "3"}, 3),
        ('pairs = "rated.jsonl"', {"pairs": ""}, 4),
        ("", {}, 4),
    ],
)
def test_a_group_of_human_pairs_has_two_candidates_unless_another_number_is_given(text, flags, candidates):
    assert parse_config(text, "my.toml", flags).sampler.candidates == candidates


def test_a_renamed_key_is_refused_with_its_new_name():
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match=f"^my.toml: {old} was renamed to {new}$"):
            parse_config(f"{old} = 1", "my.toml")
        flag = old.replace("_", "-")
        with pytest.raises(ConfigError, match=f"^--{flag}: {old} was renamed to {new}$"):
            load_config(None, {flag: "1"})


def test_every_new_name_of_a_renamed_key_is_a_key():
    names = [key.name for key in keys()]
    assert not [new for new in RENAMED.values() if not any(f"{name}.".startswith(f"{new}.") for name in names)]
    assert not set(RENAMED) & set(names)


def test_a_role_has_a_section_of_its_own():
    config = parse_config("[cluster]\nsampler.count = 3\n[cluster.learner]\nnode = 'A800'", "my.toml")
    assert (config.cluster.sampler.count, config.cluster.learner.node) == (3, "A800")
    assert config.cluster.placement_of("rewarder") == config.cluster.rewarder
    assert load_config(None, {"cluster.rewarder.gpus": "0.5"}).cluster.rewarder.gpus == 0.5
