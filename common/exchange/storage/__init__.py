"""Persistent state of the exchange: SQLite ledger, blob files, group commit, snapshots, the run's lock.

These modules only store data. The policy (admission, order, staleness) is in `common/exchange/rules.py`.
"""
