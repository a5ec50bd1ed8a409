"""Trains and evaluates the toon heads on rendered clips, whose defects the renderer knows (`douga toon build`).

A change to the data, the loss or the order of random draws changes the trained weights: train the embedded heads again
after it. Never use the oracle here: it judges runs, so it must not have trained their rewards.
"""
