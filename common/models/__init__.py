"""CogVideoX models as folders: loading, shapes, noise schedule, LoRA, fingerprints.

Change here what belongs to the model for every role. Sampling and losses belong to `actors/` and `learner/`.
"""
