"""The Muon optimizer: momentum with an orthogonalized update, for the hidden weight matrices of a network.

`torch.optim.Muon` computes in bfloat16, which is slow on CPUs that emulate it. This one keeps the gradient's dtype.

Symbols (Jordan et al. 2024, "Muon"; scale: Liu et al. 2025, "Muon is scalable for LLM training", section 2.2):

| symbol | here | meaning |
|---|---|---|
| G | `parameter.grad` | gradient of a matrix ``[A, B]``, or of a convolution kernel ``[A, ...]`` flattened to one |
| B_t = mu B_{t-1} + G | `momentum` | momentum |
| NS(G + mu B_t) | `orthogonal` | nearest matrix with singular values near 1 |
| 0.2 sqrt(max(A, B)) | `ADAMW_SCALE` | scales the update to AdamW's size, so that both use the same learning rate |
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration: steepest at zero, not exact at one
ITERATIONS = 5
ADAMW_SCALE = 0.2


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Orthogonalize a ``[A, B]`` matrix by Newton-Schulz iteration: singular values end in about 0.7..1.2."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp_min(1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolution kernels, with decoupled weight decay as in AdamW.

    Raises:
        ValueError: a parameter has fewer than two dimensions.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        shapes = [list(p.shape) for group in self.param_groups for p in group["params"]]
        if any(len(shape) < 2 for shape in shapes):
            raise ValueError(f"Muon takes parameters of two or more dimensions, got shapes {shapes}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: nn.Parameter, lr: float, decay: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(MOMENTUM).add_(parameter.grad)
        update = orthogonal(parameter.grad.add(momentum, alpha=MOMENTUM).flatten(1))  # type: ignore[union-attr]
        parameter.mul_(1 - lr * decay)
        parameter.add_(update.view_as(parameter), alpha=-lr * ADAMW_SCALE * math.sqrt(max(update.shape)))
