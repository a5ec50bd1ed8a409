"""The logs of a run: one file per process in ``RUN/logs/``, whichever node the process runs on.

```
worker, driver ──> ForwardingHandler ── batches ──> hub ──> logs/sampler-3.log, logs/driver.log
hub, serial    ──────────────────── LogFile ──────────────> logs/hub.log, logs/serial.log
```

Only the process that holds the run folder writes log files: the hub, or the one process of a serial run. Everybody
else sends records to the hub. One mechanism therefore covers workers on this node, on other nodes and outside the Ray
cluster; none of them needs to see the folder, and no file has two writers. The price is that records wait in the
worker's memory while there is no hub, and are lost if the worker is killed before a hub is back.

A worker's log never blocks or fails its work: the queue is bounded (`forward.CAPACITY`), and a full disk is counted
and reported in the next record that can be written.
"""
