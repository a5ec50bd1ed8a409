"""Results of a run: the held-out comparison, the report and the export; also `douga sample` and `douga score`.

Change here how results are judged and shown. `deploy/runtime` decides which clips are compared.
"""
