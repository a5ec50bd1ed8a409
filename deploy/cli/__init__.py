"""The `douga` command line: one module per group of commands, with its options and actions. `flags.py` is the parser.

Change commands, options and help texts here. An action checks its options, calls another package and prints the
result. Parsing imports no torch.
"""
