"""The learner: policy and reference in an engine's hands, and the loss of a step (`learner/losses`).

A step is a function of the weights, the pairs and (seed, step): ranks, micro-batches and restarts do not change what is
drawn. `learner/loop.py` says when it is taken and what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from torch import distributed

from common.config import LearnerConfig, RunConfig
from common.errors import ConfigError
from common.exchange.api import RunExchange
from common.messages import TrainingPair, WeightVersion
from common.models.cogvideox import ModelFolder, compile_blocks, predict_v
from common.models.noise_schedule import NoiseSchedule
from common.weights.store import draft_of, new_folder
from common.weights.tensor_file import TensorStream
from common.weights.tensors import from_array, tensor_entry, whole_digest
from learner import checkpoint
from learner.activation_checkpointing import recompute_in
from learner.algorithms import (
    Draw,
    PairErrors,
    Predict,
    draw,
    inside,
    pair_losses,
    pair_weights,
    v_errors,
)
from learner.batch import PairBatch, collate, share
from learner.engines.base import Engine, NonFinite
from learner.engines.single import SingleEngine
from learner.loop import LearningLoop, StepResult
from learner.reference_model import AdapterReference, CopyReference, Reference


class Learner(LearningLoop):
    """Policy, reference, optimizer and their files under `folder` (weights/, checkpoints/).

    `empty_embeds` is the empty caption's embedding [L, D]; needed when `learner.caption_drop` > 0, and may be set
    later. Of several ranks each calls `learner.engines.zero.join_group` before.
    """

    def __init__(
        self,
        model: ModelFolder,
        config: RunConfig,
        folder: Path,
        worker: str = "learner-0",
    ) -> None:
        super().__init__(config, folder, worker, model.parts)
        self._schedule = NoiseSchedule.from_config(model.scheduler_config)
        self._latent_shape = model.latent_shape(config.model.frames, config.model.height, config.model.width)
        self._dtype = getattr(torch, config.model.dtype)
        module = without_dropout(model.load_transformer(self._dtype, config.model.device))
        self._architecture = _architecture(module)
        recompute_in(module, self._rules.gradient_checkpointing)
        self.reference: Reference = (
            AdapterReference(module, self._rules.lora, config.seed)
            if self._rules.train == "lora"
            else CopyReference(module, self._rules.reference)
        )
        if self._rules.compile:
            compile_blocks(module)
            self.reference.compile()
        self.engine = make_engine(module, self._rules, config.model.device)
        self.reference.place(self.engine)

    # A step.

    def take(self, exchange: RunExchange | None) -> StepResult | None:
        """See `LearningLoop.take`."""
        pairs = share(self._lease(exchange), self.engine)
        if pairs is None:
            return None
        sums, norm = self.optimize(pairs)
        loss, inner, winner, loser = (sums / len(pairs)).tolist()
        return StepResult(
            ordinals=pairs.ordinals,
            loss=loss,
            inside=inner,
            margin=(pairs.rewards[:, 0] - pairs.rewards[:, 1]).mean().item(),
            gap=pairs.gap.mean().item(),
            winner_error=winner,
            loser_error=loser,
            grad_norm=norm,
            lag=pairs.lag.mean().item(),
            lag_max=int(pairs.lag.max().item()),
            reward=pairs.rewards.mean().item(),
        )

    def _lease(self, exchange: RunExchange | None) -> PairBatch | None:
        if exchange is None:
            return None
        leased: Sequence[TrainingPair] = exchange.lease_pairs(self.worker, self.step + 1, self._rules.pairs_per_step)
        if not leased:
            return None
        pairs = collate(leased)
        if pairs.winner.shape[1:] != self._latent_shape:
            found, needed = list(pairs.winner.shape[1:]), list(self._latent_shape)
            raise ConfigError(f"pairs have latents {found}, this model and model.frames/height/width give {needed}")
        return pairs

    def optimize(self, pairs: PairBatch) -> tuple[torch.Tensor, float]:
        """Update from the global batch: its sums of (loss, inside, winner, loser), the gradient norm. Collective."""
        step, sums = self.step + 1, torch.zeros(4, device=self.engine.device)
        weights = pair_weights(self._rules.loss, pairs.gap, self._rules.normalise_gap)
        first = self.engine.rank * self.engine.per_rank
        starts = range(first, first + self.engine.per_rank, self._rules.micro_batch)
        cuts = [(start, min(start + self._rules.micro_batch, first + self.engine.per_rank)) for start in starts]

        def micro_batch(start: int, stop: int) -> Callable[[], torch.Tensor]:
            def loss() -> torch.Tensor:
                errors = self.errors(pairs.part(start, stop), pairs.ordinals, step)
                losses = pair_losses(self._rules.loss, errors, weights[start:stop].to(sums.device), self._rules.beta)
                parts = (losses, inside(errors, self._rules.beta), errors.winner_gain, errors.loser_gain)
                sums.add_(torch.stack([part.detach().sum() for part in parts]))
                return losses.sum() / len(pairs)

            return loss

        try:
            norm = self.engine.step([micro_batch(*cut) for cut in cuts], self._learning_rate(step))
        except NonFinite as error:
            raise NonFinite(f"optimizer step {step}: {error}; its pairs have the ordinals {pairs.ordinals}") from error
        return self.engine.sum_over_ranks(sums), norm

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up to the configured rate, then constant."""
        return self._rules.lr * min(1.0, step / max(1, self._rules.warmup_steps))

    # Errors.

    def errors(self, pairs: PairBatch, ordinals: Sequence[int], step: int) -> PairErrors:
        """e of policy (with gradient) and reference on `pairs`, a part of the global batch `ordinals` of `step`."""
        drawn = draw(self.config.seed, step, ordinals, self._rules, pairs, self._schedule.steps).to(self.engine.device)
        pairs = pairs.to(self.engine.device)
        with self.reference.forward_context(self.engine) as model:
            reference = self._v_errors(model, pairs, drawn)
        policy = self._v_errors(self.engine.model, pairs, drawn)
        return PairErrors(*policy, *reference)

    def _v_errors(self, model: torch.nn.Module, pairs: PairBatch, drawn: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        empty = None if self.empty_embeds is None else from_array(self.empty_embeds, self.engine.device)
        return v_errors(self._predict(model), self._schedule, pairs, drawn, empty)

    def _predict(self, model: torch.nn.Module) -> Predict:
        def predict(
            x_t: torch.Tensor, image: torch.Tensor | None, timesteps: torch.Tensor, text: torch.Tensor
        ) -> torch.Tensor:
            condition = None if image is None else image.to(self._dtype)
            return predict_v(model, x_t.to(self._dtype), condition, timesteps, text.to(self._dtype))

        return predict

    # Weights.

    def refresh(self) -> None:
        """See `LearningLoop.refresh`."""
        self.reference.refresh(self.engine)

    def policy_state(self) -> dict[str, torch.Tensor]:
        """Copies of the policy's tensors, whole, all at once in host memory, on rank 0. Collective."""
        return self.engine.collect(self.reference.policy, lambda stream: dict(stream.tensors)) or {}

    def policy_digest(self) -> str:
        """The digest of the policy if it were published now, hex, on rank 0. Collective."""
        return self._digest(self.reference.policy)

    def reference_digest(self) -> str:
        """Digest of the reference's tensors under the same names, hex: the policy's right after a refresh."""
        return self._digest(self.reference.parameters)

    def _digest(self, tensors: Mapping[str, torch.Tensor]) -> str:
        def digest(stream: TensorStream) -> str:
            return whole_digest(tensor_entry(name, tensor) for name, tensor in stream.tensors)

        return self.engine.collect(tensors, digest) or ""

    def publish(self, exchange: RunExchange | None) -> WeightVersion | None:
        """See `LearningLoop.publish`."""
        version = self.engine.collect(self.reference.policy, partial(self._publish, exchange))
        if version is not None:
            self.version = version.version
        return version

    def _publish(self, exchange: RunExchange | None, stream: TensorStream) -> WeightVersion:
        if exchange is None:
            raise RuntimeError("rank 0 publishes: it needs the exchange")
        return self.put_out(exchange, stream, self.reference.kind)

    # Checkpoints.

    def save(self, exchange: RunExchange | None) -> None:
        """See `LearningLoop.save`."""
        engine, place = self.engine, checkpoint.place(self._checkpoints, self.step)
        draft, first = draft_of(place), engine.rank == 0
        with ExitStack() as stack:
            with engine.agreed():
                if first:
                    stack.enter_context(new_folder(place))
            engine.collect(self.reference.policy, partial(checkpoint.write_tensors, draft, "policy"))
            engine.collect(self.reference.parameters, partial(checkpoint.write_tensors, draft, "reference"))
            with engine.agreed():
                optimizer = TensorStream.of(engine.optimizer_state())
                checkpoint.write_tensors(draft, f"optimizer-{engine.rank}", optimizer)
            with engine.agreed():
                if first:
                    checkpoint.write_progress(draft, self._progress())
                    stack.close()  # the draft becomes the checkpoint
                    checkpoint.prune(self._checkpoints, self._rules.keep_checkpoints)
                if exchange is not None:
                    exchange.mark(self.step)

    def load(self, folder: Path) -> None:
        """See `LearningLoop.load`."""
        progress = checkpoint.read_progress(folder)
        checkpoint.check_agrees(folder, progress, self._progress(), self.config.model.path)
        names = ("policy", "reference", f"optimizer-{self.engine.rank}")
        with self.engine.agreed():
            policy, reference, optimizer = (checkpoint.read_tensors(folder, name) for name in names)
        self.engine.assign(self.reference.policy, policy)
        self.reference.load(self.engine, reference)
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


def make_engine(module: torch.nn.Module, rules: LearnerConfig, device: str) -> Engine:
    """The one that ranks and stage ask for. Collective."""
    if rules.zero_stage == 0 and not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return SingleEngine(module, rules, device)
    from learner.engines.zero import ZeroEngine  # noqa: PLC0415 - DeepSpeed takes seconds, and need not be there otherwise

    return ZeroEngine(module, rules, device)


def without_dropout(module: torch.nn.Module) -> torch.nn.Module:
    """`module` in training mode with every dropout at 0: winner, loser, policy and reference see one function."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module.train()


def _architecture(module: torch.nn.Module) -> str:
    """A digest of the module's tensor names and shapes, before adapters."""
    layout = sorted((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())
    return blake2b(repr(layout).encode(), digest_size=16).hexdigest()
