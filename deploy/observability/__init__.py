"""Metrics of running processes: their definitions, exporters, Prometheus rules, Grafana dashboards, TensorBoard.

Change here what is measured: a metric is added to `definitions.py` first, and tests compare rules, dashboards and docs.
"""
