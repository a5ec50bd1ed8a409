"""Prints Kubernetes objects that are generated from other files of the repository.

```
python -m deploy.launch.manifests raycluster > deploy/launch/kuberay/raycluster.yaml    rayjob.yaml without the job
python -m deploy.launch.manifests rules | kubectl apply -f -    alerts of deploy/observability/prometheus
```
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.observability import stack

HERE = Path(__file__).parent
RAYJOB = HERE / "kuberay" / "rayjob.yaml"
CLUSTER_HEADER = """\
# A long-lived RayCluster for `ray job submit` (docs/deploy.md). Generated from rayjob.yaml; after a change there run:
# python -m deploy.launch.manifests raycluster > deploy/launch/kuberay/raycluster.yaml
"""


def raycluster(job: Path = RAYJOB) -> str:
    """Returns the cluster of a RayJob as a RayCluster with the same name, as YAML."""
    found = yaml.safe_load(job.read_text("utf-8"))
    kind = {"apiVersion": found["apiVersion"], "kind": "RayCluster", "metadata": found["metadata"]}
    return CLUSTER_HEADER + _yaml(kind | {"spec": found["spec"]["rayClusterSpec"]})


def rules() -> str:
    """Returns a PrometheusRule with the rules of deploy/observability/prometheus, as YAML."""
    kind = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "douga"}}
    return _yaml(kind | {"spec": stack.rules()})


class _Plain(yaml.SafeDumper):
    """Writes repeated values in full instead of as YAML aliases, which are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        """See `yaml.SafeDumper`."""
        return True


def _yaml(kind: dict[str, Any]) -> str:
    return yaml.dump(kind, Dumper=_Plain, sort_keys=False, width=120)


MADE: dict[str, Callable[[], str]] = {"raycluster": raycluster, "rules": rules}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one object. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.launch.manifests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=sorted(MADE), help="the object to print to stdout")
    sys.stdout.write(MADE[parser.parse_args(argv).kind]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
