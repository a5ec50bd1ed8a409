"""What watches runs from outside: the rules that Prometheus evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PROMETHEUS, GRAFANA = HERE / "prometheus", HERE / "grafana"


def rules() -> dict[str, Any]:
    """The rules file as Prometheus reads it, ``{"groups": [...]}``: also what a PrometheusRule has as its ``spec``."""
    return yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))
