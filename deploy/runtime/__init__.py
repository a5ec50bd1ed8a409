"""Runs: the serial loop, and for clusters the driver, the hub and the worker processes.

Change here who does what when, and what happens on failure. Scheduling rules belong to `common/exchange/rules.py`.
"""
