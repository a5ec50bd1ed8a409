"""Weights for RAFT: arbitrary ones that any program can make again, and some that give a known flow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rewarders.judges.dynamic_degree import ITERATIONS, RAFT_FILE
from rewarders.optical_flow.raft import SCALE, Raft

State = dict[str, torch.Tensor]


def arbitrary(like: State) -> State:
    """Each tensor from a generator that its name seeds."""
    made = {name: _values(name.replace("norm3", "downsample.1"), tuple(one.shape)) for name, one in like.items()}
    return {name: one.to(like[name].dtype) for name, one in made.items()}


def _values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(list(name.encode()))
    noise = rng.standard_normal(shape)
    if name.endswith("running_var"):
        noise = 1 + 0.2 * np.abs(noise)
    elif len(shape) == 1:
        noise = 0.1 * noise + (name.endswith("weight"))
    elif shape:
        noise = noise * np.prod(shape[1:]) ** -0.5
    return torch.tensor(noise)


def raft_of_flow(folder: Path, x: float, y: float = 0.0) -> str:
    """A folder with a RAFT that sees everything move by (x, y) pixels, whatever the frames show."""
    model = Raft()
    model.load_state_dict(arbitrary(model.state_dict()))
    with torch.no_grad():
        model.update_block.flow_head.conv2.weight.zero_()
        model.update_block.flow_head.conv2.bias.copy_(torch.tensor([x, y]) / (ITERATIONS * SCALE))
        for weights in model.update_block.mask[2].parameters():
            weights.zero_()  # equal weights of the 3 x 3 positions
    return saved(folder, model)


def saved(folder: Path, model: Raft) -> str:
    """Writes a model as the judge reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.clone() for name, one in model.state_dict().items()}, folder / RAFT_FILE)
    return str(folder)
