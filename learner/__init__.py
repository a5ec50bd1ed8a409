"""The learner: leases batches, takes optimizer steps, publishes weights.

`loop.py` has the training loop, `learner.py` one optimizer step, `algorithms/` the losses, `engines/` the distributed
optimizers.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():  # no NVIDIA driver: keeps DeepSpeed, which diffusers imports, from probing
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
