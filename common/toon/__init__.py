"""The toon world: renderer, prompts, oracle, and the embedded weights.

Change here what toon clips show and how the oracle judges them. The oracle must never be trained on.
"""
