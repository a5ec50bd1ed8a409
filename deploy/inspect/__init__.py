"""Reads and displays a run from the files in its folder: `douga status`, `watch`, `trace` and `logs`.

Change what these commands show here. Nothing in this package writes to a run folder or takes its lock.
"""
