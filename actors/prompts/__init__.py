"""Prompt sources: the toon world, prompt files, and folders of videos with captions.

A source must stay a function of the ordinal: a resumed run asks for the same prompts again.
"""
