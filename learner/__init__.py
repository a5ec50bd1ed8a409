"""The learner: leases batches, takes optimizer steps, publishes weights.

`loop.py` is its life, `learner.py` a step, `algorithms/` what is learned, `engines/` how a step is distributed.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():  # no NVIDIA driver: DeepSpeed, which diffusers imports, need not look for one
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
