"""Reward models: they score clips for training (`rewarder.py`, `loop.py`); their heads are trained on human ratings.

To add a reward, implement `interface.Reward` or `interface.Judge`; other packages know only these two. A change
that alters a score must also change the reward's digest, because scores are only compared under equal digests.
"""
