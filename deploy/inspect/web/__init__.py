"""``douga watch``: a run on a local web page. `look.py` says what there is to see, `app.py` serves it."""
