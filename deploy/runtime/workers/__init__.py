"""The worker processes of a cluster run: each connects to the hub and does the work of one role until it is stopped.

```
             lease, submit                       spans, steps                    pull
  sampler ────────────────> exchange   worker ────────────────> journal   sampler <──── weights
```

Workers hold no state that cannot be recreated: a crashed worker only loses its lease, because its heartbeat stops.
Placement and restarts are handled elsewhere (`deploy/runtime/driver.py`). Each role has a separate file, so that a
process imports no more than it needs.
"""
