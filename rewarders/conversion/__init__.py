"""Converts published reward checkpoints to folders of safetensors (`douga reward convert`). A run loads no other files.

To add a kind, write a converter and add it to `kinds.KINDS`. Sizes come from the tensors or from a config, so a
converter works at any size and is tested at a small one.
"""
