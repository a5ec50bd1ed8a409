"""Reward models: they score clips for training (`rewarder.py`, `loop.py`); their heads are trained on human ratings.

To add a reward, implement `interface.Reward` or `interface.Judge` (other packages know only these two) and register it:
a judge kind in `judges/registry.py` (`KINDS`), an AnimeReward class in `anime_reward/__init__.py` (`CLASSES`), a toon
head in `toon_heads/heads.py` (`HEADS`). A change that alters a score must also change the reward's digest, because only
scores with equal digests are compared.

`conversion` makes model folders from published checkpoints (`douga reward convert`).

Metrics of single clips are judges too. Those over sets of clips are in `set_metrics`. `controls.py` shows whether a
judge prefers a frozen or a flickering clip.
"""
