"""Judges beside the AnimeReward heads: kinds that are built in, a user's class, a server elsewhere."""

from rewarders.judges.registry import KINDS, open_judge, open_judges, open_rewards

__all__ = ["KINDS", "open_judge", "open_judges", "open_rewards"]
