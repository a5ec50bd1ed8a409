"""Grafana dashboards as code. `python -m deploy.observability.grafana.dashboards` writes the JSON files.

Change here panels and dashboards, then generate; a test compares the files.
"""
