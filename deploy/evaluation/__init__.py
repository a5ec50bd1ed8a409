"""`douga evaluate`: any number of models on the same prompts and seeds, in one table.

Sampling is a collection (`deploy/runtime/collection.py`), so all figures come from candidate sets and can be computed
again. Figures may be added; what an interval resamples (distinct prompts) must stay.
"""

FORMATS = ("text", "markdown", "latex", "json")  # of the printed table
