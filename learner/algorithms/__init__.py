"""The algorithms, one module each: candidate selection, weights, loss and reference updates.

`base.py` defines the interface, `v_prediction.py` computes the v errors that the losses use. To add an algorithm, add a
module here and its name to `common/config/algorithm.py`. No other code may depend on a specific algorithm or metric.
"""
