"""The `douga` command: one module per group of commands, with its options and its actions. `flags.py` is the parser.

Change here what a user types and reads. An action parses, calls another room and prints. Parsing needs no torch.
"""
