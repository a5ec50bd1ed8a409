"""`douga plan`: memory, time and disk of a run, computed from its configuration without loading a model.

Change here the estimates. Tests compare them with real models, so a formula follows the code that it estimates.
"""
