"""Judges: reward models beside the AnimeReward heads, each under a name of the user's choice (`[reward.judges.NAME]`).

To add a kind, write a `Reward` or `Judge` class in its own module and add it to `registry.KINDS`. `adapter.py` converts
its input and scales its values. `remote.py` documents the HTTP protocol; change it together with `server.py`.
"""

from rewarders.judges.registry import KINDS, open_judge, open_judges, open_rewards

__all__ = ["KINDS", "open_judge", "open_judges", "open_rewards"]
