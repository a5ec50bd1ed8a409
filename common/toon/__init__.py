"""The toon world: a renderer, an oracle judge, prompts, and the embedded model weights (`weights/`).

Ratings, prompts and the oracle's scores are functions of pixels and seeds: a change of rendering or of random draws
makes the embedded weights stale, so run `douga toon build` after it.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # the embedded model (`pipeline/`) and reward heads (`heads/`)
