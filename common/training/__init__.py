"""One resumable training loop (`fit.py`) and the Muon optimizer, for small models: reward heads and the toon pipeline.

The learner does not use it. Any change of the numerics changes the weights that `douga toon build` reproduces.
"""
