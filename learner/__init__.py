"""The learner: losses, engines, the reference, checkpoints."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before anything imports DeepSpeed: diffusers does, for one
