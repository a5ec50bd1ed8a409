"""How the exchange keeps its state: SQLite ledger, blob files, group commit, snapshots, the run's lock.

Change here how bytes reach the disk. It decides nothing: no admission, no order, no staleness.
"""
