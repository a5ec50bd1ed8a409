"""Finds the clips of a run or folder and serves the rating page of `rewarders/annotation` for them (`douga annotate`).

Change here where clips are found and how results are printed. The page and the store are in `rewarders/annotation`.
"""
