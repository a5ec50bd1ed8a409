"""Samplers: turn prompts into candidate clips under one policy version.

A candidate must stay a function of (weights, seed): whatever makes sampling faster may not depend on timing or on
neighbours in a batch. Actors never import the learner or rewarders.
"""
