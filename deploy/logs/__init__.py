"""The logs of a run: one file per process in ``RUN/logs/``, whichever node the process runs on.

Only the process that holds the run folder (hub, or the serial process) writes files; all others send their records to
the hub. Logging never blocks or fails the work: queues are bounded, and lost records are counted and reported.
Change here what is logged, redacted and sent; `deploy/inspect/logs.py` reads the files.
"""
