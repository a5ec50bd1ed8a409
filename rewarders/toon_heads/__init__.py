"""The toon world's six reward heads: small networks over 9-frame 48x64 clips, whose weights ship with the repository.

`heads.HEADS` is the table of heads; add or change one there. A change to `network.py` or to a row changes scores and
digests, so the saved weights must then be trained again (`douga toon build`).
"""
