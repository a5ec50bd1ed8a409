"""What comes out of a run: the held-out comparison, report, export; and clips made or scored by hand.

Change here how results are judged and shown. Which clips are compared is decided in `deploy/runtime`.
"""
