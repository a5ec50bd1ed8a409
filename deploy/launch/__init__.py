"""Example configurations, the Docker image and the Kubernetes manifests.

Change examples and packaging here. `manifests.py` generates the manifests that follow from other files.
"""
