"""The run folder: its files, its lock, and the journal, progress and timeline that are written to it.

Change the layout of RUN/ here. The rest of `deploy` reads these files, so keep old ones readable.
"""
