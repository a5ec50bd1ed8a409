"""Benchmarks of each part against another implementation and against the machine's limit (`harness.py` has the format).
`training/` compares whole trainings.

`results/` holds kept results, from which docs/results.md is generated. Row names in code are keys of these results.
"""
