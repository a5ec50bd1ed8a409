"""Asks judges, whose code may be anybody's: what they answer becomes numbers or reasons (`results.py`), in a thread of
their own, for a limited time (`thread.py`), first with two made clips (`rehearsal.py`)."""
