"""Sampling against learning: how fast the pipeline is, synchronous, one step off, or with a staleness bound.

`scenarios.py` names the pipelines, `fleet.py` runs them on the real exchange in compressed time, and `plain_loop.py` is
the script that one would write without douga. ``python -m benchmarks.pacing``
"""
