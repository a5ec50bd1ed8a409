"""Compares ways to train: a list of variants becomes runs, one evaluation of all of them, and a table.

```
Variant ── data.py: a candidate set, real clips, rated clips ──> `douga run` ──┐
   × seeds                                                                     ├─> one `douga evaluate` ──> table
base model ────────────────────────────────────────────────────────────────────┘
```

A benchmark is a list of variants (`benchmarks/methods.py`). Everything is done by `douga` commands on the embedded toon
model, so it resumes as they do. Variants and kinds of data may be added; all variants of a table must get the same
prompts and seeds in the evaluation.
"""
