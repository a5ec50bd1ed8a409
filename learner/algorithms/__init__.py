"""The algorithms: one module each, from the choice of candidates to the loss.

`base.py` is the contract, `v_prediction.py` the errors that losses are made of. Add an algorithm by adding a module;
its name enters `common/config/algorithm.py`. Nothing else in the project may name an algorithm or one of its figures.
"""
