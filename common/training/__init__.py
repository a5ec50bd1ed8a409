"""One training loop for small networks (reward heads, the toon model), and the Muon optimizer.

Change here how these are trained. Alignment has its own loop in `learner/`.
"""
