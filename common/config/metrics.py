"""``[metrics]``: exporters and TensorBoard."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Section


class MetricsConfig(Section):
    """What watches a run from outside: an exporter for Prometheus in every process, and TensorBoard's files."""

    enabled: bool = Field(default=True, description="all processes serve metrics over HTTP; RUN/prometheus lists them")
    port: int = Field(
        default=0, ge=0, le=65535, description="first port that a process tries; 0: free ones, others at every start"
    )
    tensorboard: bool = Field(
        default=False, description="steps and readings of the guardrails also go to RUN/tensorboard/"
    )
