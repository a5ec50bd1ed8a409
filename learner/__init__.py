"""The learner: leases batches, takes optimizer steps, publishes weights.

`loop.py` has the training loop, `learner.py` one optimizer step, `algorithms/` the losses, `engines/` the distributed
optimizers. A step must stay a function of (weights, batch, seed, step), so that a resumed run repeats it bit for bit.
Later versions read old checkpoints: a new field of `checkpoint.Progress` needs a default.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():  # no NVIDIA driver: keeps DeepSpeed, which diffusers imports, from probing
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
