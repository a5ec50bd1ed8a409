"""Servers that make published reward code available to runs, one folder each; they run in their own environment.

Add a recipe here when its code cannot be imported beside ours. It speaks the protocol of `rewarders/judges/remote.py`.
"""
