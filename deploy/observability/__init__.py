"""Metrics of running processes: their definitions, exporters, Prometheus rules, Grafana dashboards, TensorBoard.

Change metrics here: add a metric to `definitions.py` first; tests compare it with rules, dashboards and docs.
"""
