"""RAFT, a network for optical flow (Teed and Deng 2020, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow").

Frames have 8 h x 8 w pixels, and every position of the h x w feature maps gets a flow, which is refined K times:

```
g1, g2 = fnet(frame 1), fnet(frame 2)                   [256, h, w]
z, c   = tanh, relu of the halves of cnet(frame 1)      [128, h, w] each: the state, and the context
C_l    = <g1(p), g2(q)> / sqrt(256), all p and q, averaged over 2^l x 2^l positions q; l = 0..3
repeat K times:
    m  = motion features of the flow f and of C_l around p + f(p), 9 x 9 values of each level, bilinear
    z  = GRU(z; c, m)
    f <- f + flow_head(z)                               in feature pixels; f = 0 at first
flow of a pixel = sum of 9 weights times 8 f, over the 3 x 3 positions around its own; the weights come from z
```

This is the large model, without dropout and mixed precision. The modules have the names of the published checkpoints,
raft-things.pth among them, so that their weights load unchanged (docs/published-rewards.md). There are no deviations
from the public code in what it computes: both give equal flows for equal weights.

It is here because torchvision, which has RAFT too, cannot be imported unless it was built for the same CUDA as torch,
and which build of torch is installed depends on the machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 8  # frame pixels per feature pixel, in height and width
LEVELS, RADIUS = 4, 4
SMALLEST = 2 ** (LEVELS - 1) * 2 * SCALE  # pixels: the coarsest level needs two positions in each direction
FEATURES, HIDDEN, CONTEXT, MOTION = 256, 128, 128, 128


class Raft(nn.Module):
    """The flow between two frames."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet = Encoder(FEATURES, nn.InstanceNorm2d)
        self.cnet = Encoder(HIDDEN + CONTEXT, nn.BatchNorm2d)
        self.update_block = UpdateBlock()

    def forward(self, before: Tensor, after: Tensor, iterations: int) -> Tensor:
        """Displacements ``[N, 2, H, W]`` (x, y) in pixels, of frames ``[N, 3, H, W]`` with values -1..1.

        H and W are multiples of `SCALE`, at least `SMALLEST`.
        """
        pyramid = correlations(self.fnet(before), self.fnet(after))
        state, context = self.cnet(before).split([HIDDEN, CONTEXT], dim=1)
        state, context = state.tanh(), context.relu()
        start = positions(state)
        flow = torch.zeros_like(start)
        for _ in range(iterations):
            state = self.update_block.step(state, context, look_up(pyramid, start + flow), flow)
            flow = flow + self.update_block.flow_head(state)
        return upsampled(flow, 0.25 * self.update_block.mask(state))


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut. `norm3` is in `downsample` too: the checkpoints have it under both names."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module], stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        self.downsample = None
        if stride != 1:
            self.norm3 = norm(outputs)
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, outputs, H / stride, W / stride]``."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return ((x if self.downsample is None else self.downsample(x)) + y).relu()


class Encoder(nn.Module):
    """Frames ``[N, 3, H, W]`` -> features ``[N, outputs, H / 8, W / 8]``."""

    def __init__(self, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 64, 7, stride=2, padding=3), norm(64)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, norm, 1), ResidualBlock(64, 64, norm, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 96, norm, 2), ResidualBlock(96, 96, norm, 1))
        self.layer3 = nn.Sequential(ResidualBlock(96, 128, norm, 2), ResidualBlock(128, 128, norm, 1))
        self.conv2 = nn.Conv2d(128, outputs, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        x = self.norm1(self.conv1(frames)).relu()
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class MotionEncoder(nn.Module):
    """Features of the flow and of the correlations that it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, MOTION - 2, 3, padding=1)

    def forward(self, found: Tensor, flow: Tensor) -> Tensor:
        """Correlations ``[N, 324, h, w]``, flow ``[N, 2, h, w]`` -> ``[N, MOTION, h, w]``, at the end the flow."""
        found = self.convc2(self.convc1(found).relu()).relu()
        moved = self.convf2(self.convf1(flow).relu()).relu()
        return torch.cat([self.conv(torch.cat([found, moved], 1)).relu(), flow], 1)


class SeparableGru(nn.Module):
    """A GRU of convolutions: a step along the rows, then one along the columns."""

    def __init__(self) -> None:
        super().__init__()
        inputs = HIDDEN + CONTEXT + MOTION
        for number, size in ((1, (1, 5)), (2, (5, 1))):
            for gate in "zrq":
                convolution = nn.Conv2d(inputs, HIDDEN, size, padding=(size[0] // 2, size[1] // 2))
                self.add_module(f"conv{gate}{number}", convolution)

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        """The next state ``[N, HIDDEN, h, w]``."""
        for number in (1, 2):
            update, reset, candidate = (self.get_submodule(f"conv{gate}{number}") for gate in "zrq")
            both = torch.cat([state, seen], 1)
            share = update(both).sigmoid()
            fresh = candidate(torch.cat([reset(both).sigmoid() * state, seen], 1)).tanh()
            state = (1 - share) * state + share * fresh
        return state


class FlowHead(nn.Module):
    """The change of the flow ``[N, 2, h, w]`` from the state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        """See the class."""
        return self.conv2(self.conv1(state).relu())


class UpdateBlock(nn.Module):
    """What is repeated, and `mask`, which gives the weights of `upsampled`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gru, self.flow_head = MotionEncoder(), SeparableGru(), FlowHead()
        self.mask = nn.Sequential(nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 9 * SCALE**2, 1))

    def step(self, state: Tensor, context: Tensor, found: Tensor, flow: Tensor) -> Tensor:
        """The next state."""
        return self.gru(state, torch.cat([context, self.encoder(found, flow)], 1))


def positions(like: Tensor) -> Tensor:
    """Coordinates (x, y) of every position of ``[N, C, h, w]``: ``[N, 2, h, w]``."""
    count, _, height, width = like.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).to(like).expand(count, -1, -1, -1)


def correlations(first: Tensor, second: Tensor) -> list[Tensor]:
    """C_l of features ``[N, D, h, w]``: ``[N h w, 1, h / 2^l, w / 2^l]`` for each level."""
    count, size, height, width = first.shape
    product = first.flatten(2).transpose(1, 2) @ second.flatten(2) / size**0.5
    pyramid = [product.view(count * height * width, 1, height, width)]
    for _ in range(LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def look_up(pyramid: list[Tensor], targets: Tensor) -> Tensor:
    """The correlations around each position's target ``[N, 2, h, w]``: ``[N, LEVELS (2 RADIUS + 1)^2, h, w]``.

    Within a level x varies slowest, as in the public code. Outside of the frame correlations are 0.
    """
    count, _, height, width = targets.shape
    near = torch.arange(-RADIUS, RADIUS + 1).to(targets)
    window = torch.stack(torch.meshgrid(near, near, indexing="ij"), -1)
    centres = targets.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for level, values in enumerate(pyramid):
        last = torch.tensor(values.shape[:-3:-1]).to(targets) - 1  # x, y
        grid = 2 * (centres / 2**level + window) / last - 1
        found.append(F.grid_sample(values, grid, align_corners=True).view(count, height, width, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2)


def upsampled(flow: Tensor, weights: Tensor) -> Tensor:
    """Flow ``[N, 2, h, w]`` in feature pixels and weights ``[N, 9 SCALE^2, h, w]``, before their softmax, to ``[N, 2,
    SCALE h, SCALE w]`` in frame pixels."""
    count, _, height, width = flow.shape
    shares = weights.view(count, 1, 9, SCALE, SCALE, height, width).softmax(2)
    around = F.unfold(SCALE * flow, 3, padding=1).view(count, 2, 9, 1, 1, height, width)
    mixed = (shares * around).sum(2)  # [N, 2, row in the cell, column in the cell, h, w]
    return mixed.permute(0, 1, 4, 2, 5, 3).reshape(count, 2, SCALE * height, SCALE * width)
