"""Training engines: how an optimizer step runs on one rank or several, and how sharded weights are gathered.

`base.py` is the interface that the learner calls; a new engine subclasses it and is chosen in `learner.make_engine`.
Only `zero.py` may import DeepSpeed. A change of numerics must keep the engines' tests against plain AdamW passing.
"""
