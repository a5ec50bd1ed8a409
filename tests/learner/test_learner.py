"""The learner's step against a second implementation, its schedule, and how it stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import RunConfig
from common.errors import ConfigError
from common.models.cogvideox import predict_v
from common.models.lora import inject_lora, load_adapter_state
from common.weights.tensors import to_array
from learner.algorithms.base import LossInputs, LossOutput
from learner.algorithms.dpo import dpo_logits
from learner.algorithms.sft import Sft
from learner.algorithms.v_prediction import draw
from learner.batch import collate
from learner.learner import Learner, without_dropout
from tests.support.learner.fakes import LATENT, MemoryExchange, make_group, tiny_config, tiny_model
from tests.support.learner.plain import plain_loss
from tests.support.tiny import CHANNELS, TEXT_LENGTH, TEXT_WIDTH


def start(folder: Path, config: RunConfig | None = None, **settings: Any) -> Learner:
    return Learner(tiny_model(folder / "model"), config or tiny_config(**settings), folder / "run")


def disturb(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def test_the_loss_is_that_of_a_second_implementation(tmp_path: Path) -> None:
    learner = start(tmp_path, algorithm={"beta": 50.0})
    model = tiny_model(tmp_path / "model")
    policy, reference = (model.load_transformer("float32", "cpu") for _ in range(2))
    disturb(policy)
    disturb(learner.engine.module)
    pairs = collate([make_group(0), make_group(1)])
    errors = learner.errors(pairs, pairs.ordinals, step=1)
    inputs = LossInputs(*errors, learner.algorithm.weights(pairs.weights), pairs.rewards)
    expected, logits = plain_loss(policy, reference, model, learner.config, step=1)
    assert min(abs(one) for one in logits) > 1e-3
    torch.testing.assert_close(dpo_logits(inputs, 50.0), torch.tensor(logits), atol=2e-4, rtol=1e-3)
    assert learner.algorithm.loss(inputs).loss.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    learner.close()


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_zero_learning_rate_changes_nothing(tmp_path: Path, train: str) -> None:
    learner, exchange = start(tmp_path, lr=0.0, train=train, weight_decay=0.1), MemoryExchange()
    learner.resume(exchange)  # type: ignore[arg-type]
    before = learner.policy_digest()
    for _ in range(3):
        stats = learner.work(exchange)  # type: ignore[arg-type]
        assert stats is not None
        assert stats.metrics["dpo_logits"] == 0.0
        assert stats.grad_norm > 0
    assert learner.policy_digest() == before
    assert {version.digest for version in exchange.versions} == {exchange.versions[0].digest}
    learner.close()


def test_a_zero_gap_gives_no_gradient(tmp_path: Path) -> None:
    """A weight of 0 leaves the weights alone."""
    learner, exchange = start(tmp_path), MemoryExchange(gap=0.0)
    before = learner.policy_digest()
    stats = learner.work(exchange)  # type: ignore[arg-type]
    assert stats is not None
    assert (stats.loss, stats.grad_norm) == (0.0, 0.0)
    assert learner.policy_digest() == before
    learner.close()


def test_training_moves_towards_the_chosen(tmp_path: Path) -> None:
    class Same(MemoryExchange):
        def lease_batch(self, worker: str, step: int, count: int) -> Any:
            return super().lease_batch(worker, 1, count)

    learner, exchange = start(tmp_path, lr=2e-4, algorithm={"beta": 500.0}), Same()
    logits = [learner.work(exchange).metrics["dpo_logits"] for _ in range(12)]  # type: ignore[arg-type, union-attr]
    assert logits[0] == 0.0
    assert sum(logits[-6:]) / 6 > 0.05
    learner.close()


@pytest.mark.parametrize(
    ("name", "own"), [("gapo", {"normalise_gap": True, "beta": 50.0}), ("dpo", {"beta": 50.0}), ("sft", {})]
)
def test_micro_batches_add_up(tmp_path: Path, name: str, own: dict[str, Any]) -> None:
    """Four pairs at once and in cuts of 3 + 1, with normalised gaps."""
    results = []
    for micro in (4, 3):
        config = tiny_config({"name": name} | own, batch_size=4, micro_batch=micro)
        learner = Learner(tiny_model(tmp_path / "model"), config, tmp_path / str(micro))
        disturb(learner.engine.module)
        results.append(learner.work(MemoryExchange(kept=1 if name == "sft" else 2)))  # type: ignore[arg-type]
        learner.close()
    one, cut = results
    assert one is not None
    assert cut is not None
    assert one.loss == pytest.approx(cut.loss, rel=1e-5)
    assert one.grad_norm == pytest.approx(cut.grad_norm, rel=1e-4)


def test_two_learners_are_bit_identical(tmp_path: Path) -> None:
    digests = []
    for run in ("one", "two"):
        torch.manual_seed(len(digests))  # global randomness plays no part
        config = tiny_config(train="lora", caption_drop=0.5, image_drop=0.5, image_noise=True)
        learner = Learner(tiny_model(tmp_path / "model"), config, tmp_path / run)
        learner.empty_embeds = to_array(torch.zeros(TEXT_LENGTH, TEXT_WIDTH))
        for _ in range(3):
            learner.work(MemoryExchange())  # type: ignore[arg-type]
        digests.append(learner.policy_digest())
        learner.close()
    assert digests[0] == digests[1]


@pytest.mark.parametrize("inverted", [False, True])
def test_image_noise_has_the_scale_of_the_models_image_latents(tmp_path: Path, inverted: bool) -> None:
    """sigma eps' comes before the factor: 0.7, or 1/0.7 where the checkpoint divides image latents by it."""
    model = tiny_model(tmp_path / "model", vae={"invert_scale_latents": inverted})
    learner, pairs = Learner(model, tiny_config(image_noise=True), tmp_path / "run"), collate([make_group(0)])
    images: list[torch.Tensor] = []
    learner.engine.module.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(kwargs["hidden_states"][:, :1, CHANNELS:]), with_kwargs=True
    )
    learner.errors(pairs, pairs.ordinals, step=1)
    learner.close()
    own, rules = learner.config, learner.config.learner
    unscaled = draw(own.seed, 1, (0,), rules, pairs, steps=1000, padding=0, image_scale=1.0).image_noise[0]
    assert pairs.image_latent is not None
    torch.testing.assert_close(images[0], pairs.image_latent + (1 / 0.7 if inverted else 0.7) * unscaled)


def test_the_schedule_and_the_versions(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path, steps_per_push=2, algorithm={"refresh_every": 3}), MemoryExchange()
    assert not learner.resume(exchange)  # type: ignore[arg-type]
    stats = [learner.work(exchange) for _ in range(6)]  # type: ignore[arg-type]
    assert [one.pushed for one in stats if one] == [False, True, False, True, False, True]
    assert [one.refreshed for one in stats if one] == [False, False, True, False, False, True]
    assert [(v.version, v.step, v.pushes, v.kind, v.base) for v in exchange.versions] == [
        (0, 0, 0, "full", 0),
        (1, 2, 1, "full", 1),
        (2, 4, 2, "full", 2),
        (3, 6, 3, "full", 3),
    ]
    assert learner.store.versions() == [0, 1, 2, 3]
    learner.close()


def test_a_full_version_is_a_state_dict_and_an_adapter_names_its_base(tmp_path: Path) -> None:
    model, pairs = tiny_model(tmp_path / "model"), collate([make_group(0)])
    t = torch.tensor([500])
    for train in ("full", "lora"):
        learner, exchange = Learner(model, tiny_config(train=train), tmp_path / train), MemoryExchange()
        learner.resume(exchange)  # type: ignore[arg-type]
        learner.work(exchange)  # type: ignore[arg-type]
        version, state = learner.store.load(1)
        fresh = model.load_transformer("float32", "cpu")
        if train == "full":
            fresh.load_state_dict(state)
        else:
            assert (version.kind, version.base) == ("adapter", 0)
            inject_lora(fresh, learner.config.learner.lora, seed=99)
            load_adapter_state(fresh, state)
        with torch.no_grad():
            call = (pairs.latents[:, 0], pairs.image_latent, t, pairs.prompt_embeds)
            assert torch.equal(predict_v(fresh, *call), predict_v(learner.engine.module, *call))
        learner.close()


@pytest.mark.parametrize("stage", [0, 1])
def test_the_optimizer_takes_the_rate_of_the_schedule_and_the_statistics_say_it(tmp_path: Path, stage: int) -> None:
    keys = {"lr_schedule": "constant_with_warmup", "warmup_steps": 4, "lr": 0.008, "zero_stage": stage}
    learner, exchange = start(tmp_path, **keys), MemoryExchange()
    taken, told = [], []
    for _ in range(6):
        stats = learner.work(exchange)  # type: ignore[arg-type]
        assert stats is not None
        taken.append(learner.engine.optimizer.param_groups[0]["lr"])
        told.append(stats.lr)
    assert taken == told == pytest.approx([0.0, 0.002, 0.004, 0.006, 0.008, 0.008])
    learner.close()


def test_step_result_has_lag_reward_and_metrics(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path), MemoryExchange()
    stats = learner.work(exchange)  # type: ignore[arg-type]
    assert stats is not None
    assert (stats.step, stats.reward, stats.lag) == (1, 0.625, 0.0)
    gap = 2**0.75 - 2**0.5
    expected = {"dpo_logits": 0.0, "reward_margin": 0.25, "chosen_error": 0.0, "rejected_error": 0.0}
    expected |= {"accuracy": 0.0, "gap": gap}
    assert stats.metrics == pytest.approx(expected)
    assert stats.loss == pytest.approx(0.25 * math.log(2))
    assert stats.seconds > 0
    learner.close()


def test_without_pairs_no_step_is_taken(tmp_path: Path) -> None:
    learner = start(tmp_path)
    assert learner.work(MemoryExchange(limit=0)) is None  # type: ignore[arg-type]
    assert learner.step == 0
    learner.close()


def test_a_nan_loss_reports_step_and_ordinals(tmp_path: Path) -> None:
    learner, exchange = start(tmp_path), MemoryExchange()
    with torch.no_grad():
        next(learner.engine.module.parameters()).fill_(math.nan)
    with pytest.raises(RuntimeError, match=r"optimizer step 1: the loss is nan.*ordinals \(0, 1\)"):
        learner.work(exchange)  # type: ignore[arg-type]
    assert exchange.log == []
    learner.close()


def test_latents_of_another_size_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    small = config.model_copy(update={"model": config.model.model_copy(update={"frames": 17})})
    learner = start(tmp_path, small)
    with pytest.raises(ConfigError, match=rf"candidates have latents \[{LATENT[0]}, 4, 12, 16\]"):
        learner.work(MemoryExchange())  # type: ignore[arg-type]
    learner.close()


def test_bfloat16_trains(tmp_path: Path) -> None:
    config = tiny_config()
    half = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bfloat16"})})
    learner, exchange = start(tmp_path, half), MemoryExchange()
    first, second = learner.work(exchange), learner.work(exchange)  # type: ignore[arg-type]
    assert first is not None
    assert second is not None
    assert first.loss == pytest.approx(0.25 * math.log(2))
    assert math.isfinite(second.loss)
    assert {entry.dtype for entry in exchange.versions[-1].tensors} == {"bfloat16"}
    learner.close()


def test_dropout_is_off_in_training_mode() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.9))
    assert without_dropout(module).training
    x = torch.ones(2, 4)
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("train", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_compiled_blocks_train_the_same_weights(tmp_path: Path, train: str) -> None:
    """Policy and reference: the first step's logits are 0 only where both are computed in the same way."""
    ways = []
    for compiled in (False, True):
        config = tiny_config(train=train, compile=compiled)
        learner, exchange = Learner(tiny_model(tmp_path / "model"), config, tmp_path / str(compiled)), MemoryExchange()
        first, second = learner.work(exchange), learner.work(exchange)  # type: ignore[arg-type]
        assert first is not None
        assert second is not None
        assert (first.metrics["dpo_logits"] == 0.0) or compiled
        assert abs(first.metrics["dpo_logits"]) < 0.01
        ways.append((first.grad_norm, second.loss))
        learner.close()
    assert ways[1] == pytest.approx(ways[0], rel=1e-3)


def test_fine_tuning_has_no_reference_and_one_forward_pass(tmp_path: Path) -> None:
    config = tiny_config({"name": "sft"})
    learner, exchange = Learner(tiny_model(tmp_path / "model"), config, tmp_path / "run"), MemoryExchange(kept=1)
    passes: list[int] = []
    learner.engine.module.register_forward_hook(lambda module, given, made: passes.append(1))
    assert not learner.reference.parameters
    stats = learner.work(exchange)  # type: ignore[arg-type]
    assert stats is not None
    assert (len(passes), stats.metrics) == (1, {})
    learner.save(exchange)  # type: ignore[arg-type]
    moved = learner.policy_digest()
    learner.close()
    again = Learner(tiny_model(tmp_path / "model"), config, tmp_path / "run")
    assert again.resume(exchange)  # type: ignore[arg-type]
    assert again.policy_digest() == moved
    again.close()


class Wrong(Sft):
    """Returns a mean where one value per group is wanted, or a metric that it did not declare."""

    class Config(Sft.Config):
        extra: bool = False

    def loss(self, inputs: LossInputs) -> LossOutput:
        made = super().loss(inputs)
        return LossOutput(made.loss, {"mine": made.loss}) if self.config.extra else LossOutput(made.loss.mean(), {})


@pytest.mark.parametrize(
    ("extra", "message"),
    [(True, r"returned metrics \['mine'\], declared: \[\]"), (False, r"loss has shape \[\], expected \[2\]")],
)
def test_the_output_of_an_algorithm_is_validated(tmp_path: Path, extra: bool, message: str) -> None:
    learner = start(tmp_path, algorithm={"name": "tests.learner.test_learner:Wrong", "extra": extra})
    with pytest.raises(ValueError, match=message):
        learner.work(MemoryExchange(kept=1))  # type: ignore[arg-type]
    learner.close()
