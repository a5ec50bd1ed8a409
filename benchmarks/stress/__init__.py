"""Stress tests of whole runs: `chaos.py` kills random processes, `soak.py` looks for leaks.

Both start `douga run` as a user would, and check a run's guarantees from outside.
"""
