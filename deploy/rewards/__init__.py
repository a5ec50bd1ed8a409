"""The steps of `douga reward` and `douga toon build`: building rating sets, training reward heads and the toon model.

Networks and training loops belong in `rewarders/` and `learner/`.
"""
