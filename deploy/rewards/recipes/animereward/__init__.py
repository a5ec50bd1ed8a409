"""Serves the published AnimeReward script (Index-anisora) as a judge.

Change here how its script is called. Nothing of the script is copied or changed.
"""
