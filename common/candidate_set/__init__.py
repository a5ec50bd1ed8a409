"""Candidate sets: sampled and scored clips in a folder of plain files, to train on without sampling again.

`rows.py` defines the format, which other tools read: it may be extended, but not changed. `folder.py` reads and writes,
`merge.py` joins sets. A candidate's name must stay a function of prompt, weights and seed, or sets cannot be merged.
"""
