"""One resumable training loop (`fit.py`) and the Muon optimizer, for small models: reward heads and the toon pipeline.

The learner does not use it. Options may be added with a default that changes nothing. Any change of the default
numerics changes the weights that `douga toon build` reproduces.
"""
