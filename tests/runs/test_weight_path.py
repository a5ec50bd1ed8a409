"""Weights go from the learner to the sampler over real sockets: published, announced, pulled, loaded, sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.prompts.source import open_prompts
from actors.sampler import Sampler
from common.exchange.local import LocalExchange
from common.models.cogvideox import open_model
from common.rpc.server import serving
from common.weights.source import weight_service
from common.weights.sync import WeightPuller
from learner.learner import Learner
from tests.support import toy
from tests.support.tiny import tiny_pipeline

WAIT = 30.0  # seconds


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_sampler_gets_the_learners_weights(train: str, tmp_path: Path) -> None:
    tiny_pipeline(tmp_path / "model")
    config = toy.config(tmp_path, **{"learner.train": train})
    model, prompts = open_model(config.model.path), open_prompts(config.prompts, config.seed)
    exchange = LocalExchange(config.folder, config, prompts)
    learner = Learner(model, config, config.folder)
    sampler, second = (Sampler(model, config, name) for name in ("sampler-0", "sampler-1"))
    with (
        serving(weight_service(learner.store)) as service,
        WeightPuller(service.address, exchange.wanted_version, tmp_path / "staged", "sampler-0") as puller,
    ):
        learner.resume(exchange)
        for _ in range(2):
            with torch.no_grad():
                for tensor in learner.reference.policy.values():
                    tensor.add_(0.05)
            published = learner.publish(exchange)
            assert published is not None
            assert puller.wait(published.version, WAIT)
            sampler.load(*puller.load(published.version))
            assert sampler.policy_digest() == learner.policy_digest()
    prompt = prompts(0)
    seeds = [11, 12]
    candidates = sampler.sample(prompt, sampler.encode(prompt), seeds, [0, 1])
    assert {one.policy_version for one in candidates} == {learner.version}
    second.load(*learner.store.load(learner.version))
    assert second.sample(prompt, second.encode(prompt), seeds, [0, 1]) == candidates
    base = Sampler(model, config).sample(prompt, sampler.encode(prompt), seeds, [0])[0]
    assert base.latents != candidates[0].latents
    learner.close()
    exchange.close()
