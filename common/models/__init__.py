"""CogVideoX base models: folders, model call, attention, adapters, trainable parameters, noise schedule, shapes,
fingerprints.

Only CogVideoX is supported; other architectures are not. Another CogVideoX family touches `pipeline_folder.py` (configs
and their checks), `cogvideox.py` (model call), `shapes.py` (latent sizes and padding) and
`deploy/planning/families.json` (its configs, for ``douga plan``). Read differences between families from the configs,
never from a model's name. `shapes.py` and `trainable.py` must not import torch. Numbers computed here enter weights and
digests: change them only together with the tests against diffusers.
"""
