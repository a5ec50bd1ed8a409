"""Trains reward heads on human ratings and evaluates them (`douga reward train` and `eval`).

A head that implements `rewarders.anime_reward.trainable.TrainableReward` needs no change here. Keep the split free of
leaks (`split.py`), and keep the keys of `seen.json` and of the cached features: both are read back from old folders.
"""
