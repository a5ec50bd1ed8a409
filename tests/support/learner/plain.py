"""A slow reference implementation of GAPO: diffusers' scheduler, one clip per forward pass, torch's AdamW,
transformers' learning-rate schedule.

The learner's results with shared forward passes, micro-batches, ranks and ZeRO are compared with it.
"""

from __future__ import annotations

import copy

import torch
from transformers import get_scheduler

from common.config import RunConfig
from common.models.cogvideox import ModelFolder, predict_v
from common.models.lora import adapter_parameters, inject_lora
from common.weights.tensors import from_array
from learner.algorithms.v_prediction import draw
from learner.batch import collate
from tests.support.learner.fakes import make_group


def plain_loss(
    policy: torch.nn.Module, reference: torch.nn.Module, model: ModelFolder, config: RunConfig, step: int
) -> tuple[torch.Tensor, list[float]]:
    """The mean GAPO loss of the groups that `MemoryExchange` leases for `step`, and each pair's logit."""
    rules, count = config.learner, config.learner.batch_size
    leased = [make_group(ordinal) for ordinal in range((step - 1) * count, step * count)]
    batch = collate(leased)
    chance = draw(config.seed, step, batch.ordinals, rules, batch, steps=1000, padding=0, image_scale=0.7)
    scheduler = model.make_scheduler("ddim")
    total, logits = torch.zeros(()), []
    for i, one in enumerate(leased):
        assert one.conditioning.image_latent is not None
        t, eps = chance.timesteps[i : i + 1], chance.noise[i : i + 1]
        text, image = from_array(one.conditioning.prompt_embeds)[None], from_array(one.conditioning.image_latent)[None]
        error = {}
        for clip, latents in zip("wl", one.latents, strict=True):
            x0 = from_array(latents)[None]
            noisy = scheduler.add_noise(x0, eps, t)  # type: ignore[arg-type]
            target = scheduler.get_velocity(x0, eps, t)  # type: ignore[arg-type]
            for name, network in (("policy", policy), ("reference", reference)):
                v = predict_v(network, noisy, image, t, text)
                error[name, clip] = torch.nn.functional.mse_loss(v, target)
        chosen = error["policy", "w"] - error["reference", "w"].detach()
        rejected = error["policy", "l"] - error["reference", "l"].detach()
        logit = -config.algorithm.beta / 2 * (chosen - rejected)
        logits.append(logit.item())
        total = total - one.selection.weights[0] * torch.nn.functional.logsigmoid(logit) / count
    return total, logits


def plain_training(model: ModelFolder, config: RunConfig, steps: int) -> dict[str, torch.Tensor]:
    """The policy's tensors after `steps` steps of AdamW with clipping, without refresh.

    A config with `learner.trainable` trains attention alone.
    """
    policy, rules = model.load_transformer("float32", "cpu"), config.learner
    reference = copy.deepcopy(policy)
    if rules.train == "lora":
        inject_lora(policy, rules.lora, config.seed)
        made = trained = dict(adapter_parameters(policy, "policy"))
    else:
        made = dict(policy.named_parameters())
        trained = {name: one for name, one in made.items() if rules.trainable == ("*",) or ".attn1." in name}
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=rules.lr,
        betas=(rules.adam_beta1, rules.adam_beta2),
        eps=rules.adam_epsilon,
        weight_decay=rules.weight_decay,
    )
    schedule = get_scheduler(rules.lr_schedule, optimizer, rules.warmup_steps, config.steps)
    for step in range(1, steps + 1):
        policy.zero_grad()
        plain_loss(policy, reference, model, config, step)[0].backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), rules.clip_norm)
        optimizer.step()
        schedule.step()
    return {name: parameter.detach() for name, parameter in made.items()}
