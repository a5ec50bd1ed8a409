"""The logs of a run: one file per process in ``RUN/logs/``, whichever node the process runs on.

```
worker, driver ──> ForwardingHandler ── batches ──> hub ──> logs/sampler-3.log, logs/driver.log
hub, serial    ──────────────────── LogFile ──────────────> logs/hub.log, logs/serial.log
```

Only the process that holds the run folder writes log files: the hub, or the one process of a serial run. All other
processes send their records to the hub. One mechanism therefore covers workers on this node, on other nodes and outside
the Ray cluster; none of them needs access to the folder, and no file has two writers. The drawback: while the hub is
down, records wait in the worker's memory, and are lost if the worker is killed before the hub is back.

A worker's log never blocks or fails its work: the queue is bounded (`forward.CAPACITY`), and records lost to a full
disk are counted and reported before the next record that can be written.
"""
