"""`douga status`, `watch` and `trace`: a run as its folder shows it.

Change here what people see of a run. Nothing here writes to a run folder or takes its lock.
"""
