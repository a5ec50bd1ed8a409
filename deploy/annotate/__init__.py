"""`douga annotate`: finds the clips of a run or folder, and serves the rating page of `rewarders/annotation`.

Change here where clips are found and how results are printed. The page and the answers belong to the rewarders.
"""
