"""The learner: holds policy, reference and engine, and takes the optimizer steps of the algorithm.

`learner/algorithms` has the losses; `learner/loop.py` decides when a step is taken and what follows. A step depends on
the weights, the batch, the seed and the step number. The number of ranks, the micro-batch size and restarts do not
change the random draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from torch import distributed

from common.config import LearnerConfig, RunConfig
from common.errors import ConfigError
from common.exchange.api import LearnerExchange
from common.messages import WeightVersion
from common.models.attention import set_attention
from common.models.cogvideox import ModelFolder, compile_blocks, image_factor, predict_v
from common.models.noise_schedule import NoiseSchedule
from common.models.shapes import front_padding
from common.weights.tensor_file import TensorStream
from common.weights.tensors import from_array, tensor_entry, whole_digest
from learner import checkpoint
from learner.activation_checkpointing import recompute_in
from learner.algorithms.base import LossInputs, LossOutput
from learner.algorithms.v_prediction import Draw, Predict, draw, v_errors
from learner.batch import Batch, broadcast_batch, collate
from learner.engines.base import Engine, NonFiniteLossError
from learner.engines.single import SingleEngine
from learner.learning_rate import learning_rates
from learner.loop import LearningLoop, StepResult
from learner.reference_model import make_reference
from learner.rollout import FrameRewards, Rollout, RolloutModels


class Learner(LearningLoop):
    """Trains a CogVideoX model. It writes weights/ and checkpoints/ under `folder`.

    If `learner.caption_drop` > 0, set the attribute `empty_embeds` before the first step. With several ranks, call
    `learner.engines.zero.join_group` on each rank first.
    """

    def __init__(
        self,
        model: ModelFolder,
        config: RunConfig,
        folder: Path,
        worker: str = "learner-0",
        rewards: FrameRewards | None = None,
    ) -> None:
        """`rewards` scores frames with a gradient; for algorithms with `needs_rollouts`."""
        super().__init__(config, folder, worker, model.parts)
        self._schedule = NoiseSchedule.from_config(model.scheduler_config)
        self._latent_shape = model.latent_shape(config.model.frames, config.model.height, config.model.width)
        self._padding = front_padding(model.transformer_config, self._latent_shape[0])
        self._image_factor = image_factor(model.vae_config)
        self._dtype = getattr(torch, config.model.dtype)
        module = without_dropout(model.load_transformer(self._dtype, config.model.device))
        set_attention(module, config.model.attention, self._latent_shape)
        self._architecture = _architecture(module)
        recompute_in(module, self._learner_config.gradient_checkpointing)
        self.reference = make_reference(module, self._learner_config, config.seed, self.algorithm.needs_reference)
        if self._learner_config.compile:
            compile_blocks(module)
            self.reference.compile()
        self._learning_rate = learning_rates(self._learner_config, config.steps)
        self.engine = make_engine(module, self._learner_config, config.model.device)
        self.reference.shard(self.engine)
        self._rollouts = RolloutModels(model, config, rewards) if rewards is not None else None

    # One optimizer step.

    def train_step(self, exchange: LearnerExchange | None) -> StepResult | None:
        """See `LearningLoop.train_step`."""
        batch = broadcast_batch(self._lease(exchange), self.engine)
        if batch is None:
            return None
        means, norm = self.optimize(batch)
        return StepResult(
            ordinals=batch.ordinals,
            loss=means.pop("loss"),
            grad_norm=norm,
            lr=self._learning_rate(self.step + 1),
            lag=batch.lag.mean().item(),
            lag_max=int(batch.lag.max().item()),
            reward=batch.rewards.mean().item(),
            metrics=means,
        )

    def _lease(self, exchange: LearnerExchange | None) -> Batch | None:
        if exchange is None:
            return None
        leased = exchange.lease_batch(self.worker, self.step + 1, self._learner_config.batch_size)
        if not leased:
            return None
        batch = collate(leased)
        if batch.latents.shape[2:] != self._latent_shape:
            found, needed = list(batch.latents.shape[2:]), list(self._latent_shape)
            raise ConfigError(
                f"candidates have latents {found}; this model and model.frames/height/width give {needed}"
            )
        return batch

    def optimize(self, batch: Batch) -> tuple[dict[str, float], float]:
        """Take an optimizer step on the global batch.

        Returns the mean of the loss and of each metric over the batch, by name, and the gradient norm before clipping.
        Raises `NonFiniteLossError` with the ordinals of the batch. Collective.
        """
        step = self.step + 1
        names = ("loss", *(metric.name for metric in self.algorithm.metrics))
        sums = torch.zeros(len(names), device=self.engine.device)
        weights = self.algorithm.weights(batch.weights)
        losses = [partial(self._micro_batch_loss, batch, weights, sums, cut) for cut in self._micro_batches()]
        try:
            norm = self.engine.step(losses, self._learning_rate(step))
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"optimizer step {step}: {error}; group ordinals {batch.ordinals}") from error
        means = self.engine.sum_over_ranks(sums) / len(batch)
        return dict(zip(names, means.tolist(), strict=True)), norm

    def _micro_batches(self) -> list[slice]:
        """The groups of each micro-batch of this rank, as slices of the global batch."""
        first, size = self.engine.rank * self.engine.per_rank, self._learner_config.micro_batch
        end = first + self.engine.per_rank
        return [slice(start, min(start + size, end)) for start in range(first, end, size)]

    def _micro_batch_loss(self, batch: Batch, weights: torch.Tensor, sums: torch.Tensor, cut: slice) -> torch.Tensor:
        """The contribution of the groups `cut` to the mean loss of the global `batch`.

        Adds the sums of their losses and metrics to `sums`, in the order of `Algorithm.metrics`.
        """
        inputs = self._loss_inputs(batch, weights[cut].to(sums.device), cut)
        output = self._validated(self.algorithm.loss(inputs), cut.stop - cut.start)
        values = (output.loss, *(output.metrics[metric.name] for metric in self.algorithm.metrics))
        sums.add_(torch.stack([value.detach().sum() for value in values]))
        return output.loss.sum() / len(batch)

    def _loss_inputs(self, batch: Batch, weights: torch.Tensor, cut: slice) -> LossInputs | Rollout:
        """What the algorithm's loss of the groups `cut` of the global `batch` needs."""
        part = batch.part(cut.start, cut.stop)
        if self._rollouts is None:
            policy, reference = self.errors(part, batch.ordinals, self.step + 1)
            return LossInputs(policy, reference, weights, part.rewards.to(weights.device))
        return Rollout(
            batch=part.to(self.engine.device),
            weights=weights,
            step=self.step + 1,
            padding=self._padding,
            predict=self._predict(self.engine.model),
            empty_embeds=self._empty_caption(),
            models=self._rollouts,
        )

    def _validated(self, output: LossOutput, count: int) -> LossOutput:
        """Raises `ValueError` if the loss of a user's algorithm has wrong shapes or other metrics than declared."""
        declared = {metric.name for metric in self.algorithm.metrics}
        if set(output.metrics) != declared:
            raise ValueError(f"algorithm: loss returned metrics {sorted(output.metrics)}, declared: {sorted(declared)}")
        for name, values in {"loss": output.loss, **output.metrics}.items():
            if tuple(values.shape) != (count,):
                raise ValueError(f"algorithm: {name} has shape {list(values.shape)}, expected [{count}], one per group")
        return output

    # Errors.

    def errors(self, batch: Batch, ordinals: Sequence[int], step: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The v errors [n, k] of policy (with gradient) and reference (None if the algorithm does not need it).

        `batch` is a part of the global batch with the groups `ordinals` of optimizer step `step`.
        """
        drawn = self._draw(batch, ordinals, step).to(self.engine.device)
        batch, reference = batch.to(self.engine.device), None
        if self.algorithm.needs_reference:
            with self.reference.forward_context(self.engine) as model:
                reference = self._v_errors(model, batch, drawn)
        return self._v_errors(self.engine.model, batch, drawn), reference

    def _draw(self, batch: Batch, ordinals: Sequence[int], step: int) -> Draw:
        rules, steps = self._learner_config, self._schedule.steps
        scales = {"padding": self._padding, "image_scale": self._image_factor}
        return draw(self.config.seed, step, ordinals, rules, batch, steps=steps, **scales)

    def _v_errors(self, model: torch.nn.Module, batch: Batch, drawn: Draw) -> torch.Tensor:
        return v_errors(self._predict(model), self._schedule, batch, drawn, self._empty_caption())

    def _empty_caption(self) -> torch.Tensor | None:
        return None if self.empty_embeds is None else from_array(self.empty_embeds, self.engine.device)

    def _predict(self, model: torch.nn.Module) -> Predict:
        def predict(
            x_t: torch.Tensor, image: torch.Tensor | None, timesteps: torch.Tensor, text: torch.Tensor
        ) -> torch.Tensor:
            condition = None if image is None else image.to(self._dtype)
            return predict_v(model, x_t.to(self._dtype), condition, timesteps, text.to(self._dtype))

        return predict

    # Weights.

    def refresh(self, policy_fraction: float = 1.0) -> None:
        """See `LearningLoop.refresh`."""
        self.reference.refresh(self.engine, policy_fraction)

    def policy_digest(self) -> str:
        """The digest (hex) that a version of the current policy would have; empty except on rank 0. Collective."""

        def digest(stream: TensorStream) -> str:
            return whole_digest(tensor_entry(name, tensor) for name, tensor in stream.tensors)

        return self.engine.collect(self.reference.policy, digest) or ""

    def publish(self, exchange: LearnerExchange | None) -> WeightVersion | None:
        """See `LearningLoop.publish`."""
        version = self.engine.collect(self.reference.policy, partial(self._publish, exchange))
        if version is not None:
            self.version = version.version
        return version

    def _publish(self, exchange: LearnerExchange | None, stream: TensorStream) -> WeightVersion:
        if exchange is None:
            raise RuntimeError("rank 0 needs the exchange to publish weights")
        return self.publish_and_announce(exchange, stream, self.reference.kind)

    # Checkpoints.

    def save(self, exchange: LearnerExchange | None) -> None:
        """See `LearningLoop.save`."""
        parts = {"policy": self.reference.policy}
        if self.algorithm.needs_reference:
            parts["reference"] = self.reference.parameters
        checkpoint.save(self._checkpoints, self._progress(), self.engine, parts)
        with self.engine.agreed():
            if self.engine.rank == 0:
                checkpoint.prune(self._checkpoints, self._learner_config.keep_checkpoints)
            if exchange is not None:
                exchange.record_checkpoint(self.step)

    def load(self, folder: Path) -> None:
        """See `LearningLoop.load`."""
        progress = checkpoint.read_progress(folder)
        checkpoint.check_agrees(folder, progress, self._progress(), self.config.model.path)
        names = ("policy", *(("reference",) if self.algorithm.needs_reference else ()))
        with self.engine.agreed():
            tensors = {name: checkpoint.read_tensors(folder, name) for name in names}
            optimizer = checkpoint.read_tensors(folder, f"optimizer-{self.engine.rank}")
        self.engine.assign(self.reference.policy, tensors["policy"])
        self.reference.load(self.engine, tensors.get("reference", {}))
        self.engine.load_optimizer_state(optimizer)
        self.step, self.version = progress.step, progress.version

    def _progress(self) -> checkpoint.Progress:
        return self.progress(self.engine.world, self._architecture)

    def any(self, mine: bool) -> bool:
        """See `LearningLoop.any`."""
        return self.engine.any(mine)

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()


def make_engine(module: torch.nn.Module, config: LearnerConfig, device: str) -> Engine:
    """`SingleEngine` for one rank at ZeRO stage 0, else `ZeroEngine`. Collective."""
    if config.zero_stage == 0 and not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return SingleEngine(module, config, device)
    from learner.engines.zero import ZeroEngine  # noqa: PLC0415 - DeepSpeed is optional and slow to import

    return ZeroEngine(module, config, device)


def without_dropout(module: torch.nn.Module) -> torch.nn.Module:
    """Put `module` in training mode with all dropout disabled, so that policy and reference are deterministic."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module.train()


def _architecture(module: torch.nn.Module) -> str:
    """A digest of the module's tensor names and shapes. Call it before adapters are added."""
    layout = sorted((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())
    return blake2b(repr(layout).encode(), digest_size=16).hexdigest()
