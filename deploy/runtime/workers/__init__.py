"""The worker processes of a cluster run: each connects to the hub and does the work of one role until it is stopped.

A worker holds no state that cannot be recreated: after a crash, other workers take over its leases.
Change here how a role runs as a process. The driver places and restarts them (`deploy/runtime/driver.py`).
"""
