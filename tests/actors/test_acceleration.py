"""Acceleration options: disabled they change nothing, enabled they have the documented effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.acceleration import on_device
from actors.sampler import Sampler
from common.errors import ConfigError
from common.messages import Prompt
from common.models.cogvideox import ModelFolder, open_model
from common.models.lora import adapter_state, inject_lora
from common.toon.prompts import ToonPrompts
from tests.actors.test_sampler import SEEDS, config, latents_of, publish
from tests.support.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(tiny_pipeline(tmp_path_factory.mktemp("tiny"), num_layers=3))


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return ToonPrompts(0)(7)


def latents(sampler: Sampler, prompt: Prompt) -> torch.Tensor:
    return latents_of(sampler.sample(prompt, sampler.encode(prompt), SEEDS, range(2)))


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """The batch size of every call that gets to `module`."""
    seen: list[int] = []

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(len(named.get("hidden_states", arguments[0] if arguments else ())))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_guidance_in_an_interval_of_the_noise_levels(model: ModelFolder, prompt: Prompt) -> None:
    """Ten steps stand at t = 999, 899, ... 99; two captions of two candidates make a batch of four."""
    flags = {"sampler__steps": 10, "sampler__guidance": 3}
    sampler = Sampler(model, config(**flags, sampler__guidance_interval="0.25,0.75"))
    with counted(sampler._transformer.transformer_blocks[0]) as calls:
        found = latents(sampler, prompt)
    assert calls == [2, 2, 2, 4, 4, 4, 4, 4, 2, 2]
    everywhere, nowhere = (
        latents(Sampler(model, config(**given)), prompt) for given in (flags, flags | {"sampler__guidance": 1})
    )
    assert (found - everywhere).abs().max() > 1e-3
    assert (found - nowhere).abs().max() > 1e-3
    none = latents(Sampler(model, config(**flags, sampler__guidance_interval="0,0.05")), prompt)
    assert torch.equal(none, nowhere)
    assert torch.equal(latents(Sampler(model, config(**flags, sampler__guidance_interval="0,1")), prompt), everywhere)


@pytest.mark.parametrize("interval", ["0.5,0.5", "0.8,0.2", "-0.1,1", "0,1.1"])
def test_an_interval_that_is_none_is_refused(interval: str) -> None:
    with pytest.raises(ConfigError, match=r"0 <= from < to <= 1"):
        config(sampler__guidance_interval=interval)


def test_the_cache_skips_blocks_and_is_reset_between_clips(model: ModelFolder, prompt: Prompt) -> None:
    flags = {"sampler__steps": 10, "sampler__guidance": 3}
    exact = latents(Sampler(model, config(**flags)), prompt)
    assert torch.equal(latents(Sampler(model, config(**flags, sampler__cache_threshold=1e-9)), prompt), exact)
    cached = Sampler(model, config(**flags, sampler__cache_threshold=1e9))
    with counted(cached._transformer.transformer_blocks[0]) as first, counted(cached._transformer.proj_out) as ends:
        found = latents(cached, prompt)
    assert len(first) == len(ends) == 10
    assert (found - exact).abs().max() > 1e-4
    assert torch.equal(latents(cached, prompt), found)  # nothing is left of the clip before


def test_the_cache_stays_enabled_after_a_weight_swap(model: ModelFolder, prompt: Prompt, tmp_path: Path) -> None:
    """A full version after an adapter reopens the transformer."""
    flags = {"sampler__steps": 10, "sampler__guidance": 3}
    settings, plain = config(**flags, sampler__cache_threshold=1e9), Sampler(model, config(**flags))
    base = model.load_transformer("float32", "cpu").state_dict()
    wrapped = model.load_transformer("float32", "cpu")
    inject_lora(wrapped, settings.learner.lora, seed=0, name="policy")
    adapter = {name: tensor + 0.1 for name, tensor in adapter_state(wrapped, "policy").items()}
    sampler = Sampler(model, settings)
    cached = latents(sampler, prompt)
    versions = [publish(tmp_path, adapter, 1, "adapter", 0), publish(tmp_path, base, 2)]
    for version, state in zip(versions, (adapter, base), strict=True):
        sampler.load(version, state)
        plain.load(version, state)
        assert (latents(sampler, prompt) - latents(plain, prompt)).abs().max() > 1e-4  # blocks are skipped
    assert torch.equal(latents(sampler, prompt), cached)


class Moving(torch.nn.Module):
    """Notes where it is put."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def to(self, place: str) -> Moving:  # type: ignore[override]
        self.places.append(place)
        return self


def test_offloaded_modules_are_on_the_device_only_while_used() -> None:
    module = Moving()
    with on_device(module, "cuda:0", offload=False):
        assert module.places == []
    with on_device(module, "cuda:0", offload=True):
        assert module.places == ["cuda:0"]
    assert module.places == ["cuda:0", "cpu"]


def test_offloading_changes_nothing(model: ModelFolder, prompt: Prompt) -> None:
    assert torch.equal(
        latents(Sampler(model, config(sampler__offload=True)), prompt), latents(Sampler(model, config()), prompt)
    )


def test_tiles_are_switched_on(model: ModelFolder) -> None:
    assert [Sampler(model, config(sampler__vae_tiling=on))._vae.use_tiling for on in (False, True)] == [False, True]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_clips(tmp_path: Path, prompt: Prompt) -> None:
    model = open_model(tiny_pipeline(tmp_path))
    exact, compiled = (latents(Sampler(model, config(sampler__compile=on)), prompt) for on in (False, True))
    torch.testing.assert_close(compiled, exact, atol=1e-4, rtol=0)
