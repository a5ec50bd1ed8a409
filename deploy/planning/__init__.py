"""`douga plan`: memory, time and disk of a run, computed from its configuration without loading a model.

Change the estimates here. Tests compare them with real models, so keep each formula in step with the code it estimates.
"""
