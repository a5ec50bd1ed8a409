"""Clips and human feedback on disk: mp4 files, ratings, pairs.

`ratings.py` defines file formats that users write, and `video.py` must encode the same frames to the same bytes: both
may be extended, but not changed. Nothing here imports torch.
"""
