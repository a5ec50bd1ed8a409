"""What starts a run elsewhere: example configurations, the Docker image, Kubernetes manifests.

Change here examples and packaging. `manifests.py` generates what would otherwise be written twice.
"""
