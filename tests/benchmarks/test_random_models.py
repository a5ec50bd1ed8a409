"""Families with random weights: they are what was published, and go wherever a model folder goes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.sampler import Sampler
from benchmarks import learning, sampling
from benchmarks.harness import main
from benchmarks.options import OPTIONS, RandomImagePrompts, open_given
from benchmarks.random_models import RandomModel, open_named, random_model, sizes_of
from common.config import RunConfig, load_config
from common.data.video import decode_clip
from common.errors import ConfigError
from deploy.planning.model_sizes import families
from learner.learner import Learner
from tests.support.small_models import FRAMES, HEIGHT, WIDTH, small_model


def config(dtype: str = "bfloat16", **more: Any) -> RunConfig:
    flags = {"model.dtype": dtype, "sampler.steps": 2, "sampler.candidates": 2, "sampler.guidance": 6.0}
    return load_config(flags=flags | {"learner.batch_size": 2, "learner.micro_batch": 1} | more)


@pytest.fixture(params=families())
def model(request: pytest.FixtureRequest) -> RandomModel:
    return small_model(request.param)


@pytest.mark.parametrize("family", families())
def test_parameters_are_those_of_the_published_family(family: str) -> None:
    model = random_model(family)
    sizes = sizes_of(model)

    def count(part: Any) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model.load_transformer("bfloat16", "meta")) == sizes.transformer_parameters > 1.6e9
    assert count(model.load_vae("bfloat16", "meta")) == sizes.vae_parameters == 215_583_907
    assert count(model.load_text_encoder("bfloat16", "meta")) == sizes.text_parameters == 4_762_310_656


def test_weights_are_the_same_again_finite_and_no_matrix_is_zero(model: RandomModel) -> None:
    for part in ("transformer", "vae", "text_encoder"):
        first = getattr(model, f"load_{part}")("bfloat16", "cpu").state_dict()
        torch.rand(1)
        again = getattr(model, f"load_{part}")("bfloat16", "cpu").state_dict()
        for name, tensor in first.items():
            assert tensor.dtype == torch.bfloat16
            assert torch.isfinite(tensor).all()
            assert torch.equal(tensor, again[name])
            assert tensor.ndim == 1 or tensor.abs().max() > 0, name
    assert torch.get_default_dtype() == torch.float32


def test_loading_leaves_the_random_numbers_alone(model: RandomModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model.load_transformer("bfloat16", "cpu")
    assert torch.rand(1) == expected


def test_the_sampler_and_the_pipeline_make_clips(model: RandomModel) -> None:
    settings = config()
    prompt = RandomImagePrompts(model.image_conditioned)(0)
    mine = sampling.ours(Sampler(model, settings), prompt, [1, 2])
    theirs = sampling.plain(sampling.open_pipeline(model, settings), settings, prompt, [1, 2])
    for clip in (*mine, *theirs):
        assert decode_clip(clip).shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert mine[0] != mine[1]


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_learner_and_the_plain_step_learn(model: RandomModel, train: str, tmp_path: Path) -> None:
    settings = config(**{"learner.train": train, "learner.gradient_checkpointing": "selective", "learner.lr": 1e-3})
    batch = learning.clips(settings, 2)
    learner = Learner(model, settings, tmp_path)
    try:
        before = learner.policy_digest()
        means, norm = learner.optimize(learning.encoded(model, settings, batch))
        assert learner.policy_digest() != before
    finally:
        learner.close()
    assert math.isfinite(means["loss"])
    assert norm > 0
    plain = learning.PlainDPO(model, settings)
    losses = [plain.step(batch) for _ in range(2)]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # policy = reference: log 2
    assert losses[1] != losses[0]


def test_the_plain_adapter_is_all_that_the_plain_step_trains() -> None:
    plain = learning.PlainDPO(small_model("5b-i2v"), config(**{"learner.train": "lora"}))
    trained = {name for name, parameter in plain.policy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in plain.policy.named_parameters() if ".lora_" in name} != set()


# Names.


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line of a benchmark that would open its model; SystemExit's code, and what it said."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["sampling.py", *arguments])

        def measure(given: argparse.Namespace) -> Any:
            raise AssertionError(f"opened {open_given(given)}")

        with pytest.raises(SystemExit) as ended:
            main(sampling.__doc__, measure, *OPTIONS)
        return ended.value.code  # type: ignore[return-value]

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "5b"), "--model 5b: allowed are toon, 2b, 5b-i2v, 1.5-5b-i2v, or a CogVideoX pipeline folder"),
        (("--device", "cuda:99"), "--device cuda:99: this machine has cpu"),
        (("--json", "nowhere/out.json"), "--json nowhere/out.json: no folder nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: Any, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


def test_a_name_opens_what_it_names(tmp_path: Path) -> None:
    assert open_named("toon").path.name == "pipeline"
    assert isinstance(open_named("2b"), RandomModel)
    with pytest.raises(ConfigError, match=r"model_index\.json: missing"):
        open_named(str(tmp_path))


def test_help_teaches(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2b, 5b-i2v, 1.5-5b-i2v: a published family's shapes with random weights" in said
    assert "--frames" in said
