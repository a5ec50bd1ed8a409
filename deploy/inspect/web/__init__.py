"""The live web page of `douga watch`: `view.py` selects the data, `videos.py` makes the videos, `page/` displays them.

Change the page's content and layout here. Figures are computed in `deploy/inspect/status.py`.
"""
