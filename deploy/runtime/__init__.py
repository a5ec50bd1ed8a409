"""Runs: the serial loop, and for clusters the driver, the hub and the worker processes.

Change the order of work and the handling of failures here. Scheduling rules belong to `common/exchange/rules.py`.
"""
