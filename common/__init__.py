"""Code that all roles share. It imports no other package of this repository.

`messages.py` defines every message between roles; each folder's docstring says what it is for and what may be changed.
"""
