"""A resumable training loop for the small models that ship with the project.

The batch of step k must depend on k alone. Then an interrupted training resumes and ends in the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from common.errors import ConfigError
from common.files import replacing
from common.training.muon import Muon


@dataclass(frozen=True)
class FitConfig:
    """Training settings: AdamW, optionally Muon for matrices, with linear warm-up and cosine decay to zero."""

    steps: int
    lr: float
    warmup: int = 50
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    save_every: int = 100
    validate_every: int = 0  # steps; a validation is always followed by a save. 0: at every save
    patience: int = 0  # early stopping after this many validations without improvement; 0: off

    def rate(self, step: int) -> float:
        """Learning rate of `step` (0-based)."""
        warmup = min(1.0, (step + 1) / self.warmup)
        return self.lr * warmup * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))


def fit(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    plan: FitConfig,
    folder: Path,
    log: Callable[[str], None] = print,
    matrices: Sequence[nn.Parameter] = (),
    validate: Callable[[], float] | None = None,
) -> None:
    """Train `model` in place on ``loss_of(step)``.

    The state is saved to ``folder/name.safetensors`` every `plan.save_every` steps and after every validation. A call
    with the same folder resumes the training, or returns at once with the trained weights if it is finished.

    Args:
        matrices: parameters that Muon trains; AdamW trains the others.
        validate: returns the loss on held-out data. It is called every `plan.validate_every` steps and at the end. At
            the end the model gets the weights with the lowest validation loss, and training stops early after
            `plan.patience` validations without improvement.

    Raises:
        ConfigError: the saved state is from another model, or no validation loss was finite.
    """
    optimizers = _optimizers(model, matrices, plan)
    path = folder / f"{name}.safetensors"
    start = _restore(path, model, optimizers)
    best = _BestWeights(folder / f"{name}-best.safetensors", validate, plan)
    began, total, counted = time.monotonic(), 0.0, 0
    for step in range(start, plan.steps):
        if best.is_patience_over(step):
            break
        total += _train_step(model, optimizers, loss_of(step), plan.rate(step), plan.clip_norm)
        done = step + 1
        counted += 1
        validating = done % (plan.validate_every or plan.save_every) == 0 or done == plan.steps
        if validating or done % plan.save_every == 0:
            # Before saving: if killed in between, the resumed run validates again.
            validated = best.update(model, done) if validating else ""
            _store(path, model, optimizers, done)
            pace = (time.monotonic() - began) / (done - start)
            log(f"{name}: step {done}/{plan.steps}  loss {total / counted:.4f}{validated}  {pace:.2f} s/step")
            total, counted = 0.0, 0
    best.restore(model)


def _train_step(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], loss: torch.Tensor, lr: float, clip_norm: float
) -> float:
    """Take one optimizer step on `loss` at learning rate `lr`. Returns the loss."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return loss.item()


class _BestWeights:
    """The weights with the lowest validation loss so far, in a separate file."""

    def __init__(self, path: Path, validate: Callable[[], float] | None, plan: FitConfig) -> None:
        self._path, self._validate, self._plan = path, validate, plan
        self._loss, self._step = math.inf, 0
        if validate is not None and path.exists():
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            self._loss, self._step = float(metadata["loss"]), int(metadata["step"])

    def is_patience_over(self, step: int) -> bool:
        """Whether training should stop early after `step` steps."""
        waited = step - self._step
        every = self._plan.validate_every or self._plan.save_every
        return self._validate is not None and 0 < self._plan.patience * every <= waited

    def update(self, model: nn.Module, done: int) -> str:
        """Validate, and keep the weights if they are the best. Returns text for the log line."""
        if self._validate is None:
            return ""
        training = model.training
        model.eval()
        with torch.no_grad():
            loss = self._validate()
        model.train(training)
        if loss < self._loss:
            self._loss, self._step = loss, done
            _write(self._path, model.state_dict(), {"loss": repr(loss), "step": str(done)})
        return f"  validation {loss:.4f} (least {self._loss:.4f} at step {self._step})"

    def restore(self, model: nn.Module) -> None:
        """Load the best weights. Raises `ConfigError` if no validation loss was finite."""
        if self._validate is None:
            return
        if not self._path.exists():
            raise ConfigError(f"{self._path.stem}: no validation loss was a finite number; nothing was learned")
        model.load_state_dict(load_file(self._path))


def _optimizers(model: nn.Module, matrices: Sequence[nn.Parameter], plan: FitConfig) -> list[torch.optim.Optimizer]:
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    adamw = torch.optim.AdamW(others, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    return [adamw, Muon(matrices, plan.lr, plan.weight_decay)] if matrices else [adamw]


def _states(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, torch.Tensor]]:
    """The optimizer state of each parameter, in the order of the model's parameters."""
    owner = {id(p): one for one in optimizers for group in one.param_groups for p in group["params"]}
    return [owner[id(p)].state[p] for p in model.parameters()]


def _store(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    for index, entry in enumerate(_states(model, optimizers)):
        state |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    _write(path, state, {"step": str(step)})


def _write(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    with replacing(path) as draft:
        save_file(copies, draft, metadata=metadata)


def _restore(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load a saved state in place. Returns the number of finished steps, 0 without a saved state.

    Raises:
        ConfigError: the state is from another model.
    """
    if not path.exists():
        return 0
    state = load_file(path)
    try:
        model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    except RuntimeError:
        raise ConfigError(f"{path}: the training state of another model; delete it to start over") from None
    for index, (parameter, entry) in enumerate(zip(model.parameters(), _states(model, optimizers), strict=True)):
        prefix = f"optimizer.{index}."
        saved = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        entry.update({k: v if k == "step" else v.to(parameter.device) for k, v in saved.items()})  # AdamW's step: CPU
    return steps_done(path)


def steps_done(path: Path) -> int:
    """The number of finished steps in a saved state."""
    with safe_open(path, "pt") as file:
        return int((file.metadata() or {})["step"])
