"""The processes of a cluster run: each connects to the hub, does one role's work until it is told to stop, and leaves.

```
             lease, submit                       spans, steps                    pull
  sampler ────────────────> exchange   worker ────────────────> journal   sampler <──── weights
```

A worker keeps nothing that cannot be had again: who dies loses a lease, which its heartbeat no longer renews. Nothing
here knows who places and restarts the processes. Each role has a file of its own, so that a process imports no more
than it needs.
"""
