"""Stress tests of whole runs: `chaos.py` kills random processes, `soak.py` looks for leaks.

Both start `douga run` as a user would, and check a run's guarantees from outside. Faults and limits may be added; an
invariant may not be weakened, because the docs promise it.
"""
