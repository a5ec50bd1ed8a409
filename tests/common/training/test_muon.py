"""Muon: orthogonal updates of the size of AdamW's, against torch's own."""

from __future__ import annotations

import pytest
import torch

from common.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = orthogonal(matrix)
    values = torch.linalg.svdvals(made)
    assert 0.6 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ made @ v.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-4


def test_steps_agree_with_torchs_own() -> None:
    start = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = Muon([mine], lr=0.1, weight_decay=0.2)
    # torch's blends gradient into momentum, B = mu B + (1 - mu) G; orthogonalising forgets the scale.
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(10 + step))
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (mine - theirs).norm() < 0.05 * moved  # bfloat16 in torch's iteration


def test_a_kernel_counts_as_a_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    start, gradient = torch.randn(6, 4, 3, 3, generator=generator), torch.randn(6, 4, 3, 3, generator=generator)
    kernel, matrix = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    for parameter in (kernel, matrix):
        Muon([parameter], lr=0.1, weight_decay=0.2).step()
    assert (kernel.flatten(1) == matrix).all()
    assert (kernel != start).any()


def test_only_matrices() -> None:
    with pytest.raises(ValueError, match=r"takes parameters of two or more dimensions, got shapes \[\[3\]\]"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)
