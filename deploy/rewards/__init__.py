"""`douga reward` and `douga toon build`: rating sets, and the training of reward heads and of the toon model.

Change here the steps of these commands. Networks and training loops belong to `rewarders/` and `learner/`.
"""
