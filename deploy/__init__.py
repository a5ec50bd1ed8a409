"""Puts the roles together: everything between the `douga` command and the models' work.

Floors, from the top: docs/architecture.md, "Layers". A room may import the floors below it, the roles, and common.
"""
