"""`douga watch`: the live page. `view.py` decides what it shows, `videos.py` makes the clips, `page/` draws.

Change here the page. It computes nothing itself: figures come from `deploy/inspect/status.py`.
"""
