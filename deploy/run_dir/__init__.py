"""The run folder: which files there are, who may write, journal, progress, timeline.

Change here the layout of RUN/. Everybody above reads it, so keep old files readable.
"""
