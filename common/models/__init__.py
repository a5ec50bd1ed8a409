"""CogVideoX base models: folders and the model call, LoRA adapters, noise schedule, shapes, fingerprints.

Differences between model families are read from the configs, never from a model's name. `shapes.py` must not import
torch. Numbers computed here enter weights and digests: change them only together with the tests against diffusers.
"""
