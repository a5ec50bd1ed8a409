"""On what a result was measured, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import diffusers
import torch


def describe() -> str:
    """Processor or GPU, cores, versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    return f"Machine: {device}, {os.cpu_count()} cores. {versions}."


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
