"""What all roles share. Nothing here knows a role's model work, Ray or the command line.

Floors, from the top: docs/architecture.md, "Layers".
"""
