"""Code that all roles share. It imports no other package of this repository, with one exception.

`common/config/algorithm.py` imports `learner.algorithms` by dotted name at run time, because the class of an algorithm
defines its config keys. import-linter does not see such an import; do not add others.
`messages.py` defines every message between roles; each folder's docstring says what it is for and what may be changed.
"""
