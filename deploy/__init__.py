"""Puts the roles together: everything between the `douga` command and the models' work.

The folders form layers (docs/architecture.md, "Layers"): a folder may import those of lower layers, the roles and
`common`. Change here how runs are started, watched and reported; models, losses and scheduling rules belong elsewhere.
"""
