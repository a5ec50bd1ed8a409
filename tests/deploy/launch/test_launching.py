"""The manifests of deploy/launch/kuberay and the image. Needs neither a cluster nor an image builder."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from common.config import RunConfig, load_config
from common.version import VERSION
from deploy.cli.flags import split_flags
from deploy.launch import manifests
from deploy.runtime.ray_backend import bundles, pin
from tests.deploy.launch.test_job import free_ports
from tests.support.toy import wait_until

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "deploy" / "launch" / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "kubernetes.schema.json").read_text())
KUBERNETES = "1.37"
CONFIGS = ("a800-online", "gapo", "cogvideox-1.5-5b")  # runs of the size that rayjob.yaml is for
DOCKERFILE = ROOT / "deploy" / "launch" / "docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def job() -> dict[str, Any]:
    return objects("rayjob.yaml")[0]


def cluster_of(found: Mapping[str, Any]) -> dict[str, Any]:
    return found["spec"].get("rayClusterSpec", found["spec"])


def templates(cluster: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> the template of its pods."""
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


# The manifests.


def check(found: dict[str, Any]) -> None:
    """Validates core kinds and all pods against Kubernetes' schemas, other kinds against ours."""
    if "." not in found["apiVersion"].partition("/")[0]:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
        return
    jsonschema.validate(found, SCHEMA["$defs"][found["kind"]] | {"$defs": SCHEMA["$defs"]})
    if found["kind"] in ("RayJob", "RayCluster"):
        for template in templates(cluster_of(found)).values():
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"} | template["metadata"]}
            kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


MANIFESTS = [
    (file.name, found["kind"], found) for file in sorted(KUBERAY.glob("*.yaml")) for found in objects(file.name)
]


@pytest.mark.parametrize("found", [one[2] for one in MANIFESTS], ids=["-".join(one[:2]) for one in MANIFESTS])
def test_every_object_is_valid(found: dict[str, Any]) -> None:
    check(found)


def test_all_kinds_are_present() -> None:
    kinds = {kind for _, kind, _ in MANIFESTS}
    assert kinds == {"RayJob", "RayCluster", "PodMonitor", "ScrapeConfig", "Service", "PersistentVolumeClaim"}


def _misspelt(found: dict[str, Any]) -> None:
    found["spec"]["ttlSecondsAfterFinnished"] = 1


def _kept(found: dict[str, Any]) -> None:
    found["spec"]["shutdownAfterJobFinishes"] = False  # KubeRay refuses a ttl, and suspending, without it


def _field_of_a_pod(found: dict[str, Any]) -> None:
    templates(cluster_of(found))["sampler"]["spec"]["containers"][0]["imagePullPolice"] = "Always"


def _twice(found: dict[str, Any]) -> None:
    group = cluster_of(found)["workerGroupSpecs"][0]
    group["rayStartParams"]["resources"] = "'{\"learner\": 1}'"  # beside `resources`: KubeRay refuses both


@pytest.mark.parametrize("spoil", [_misspelt, _kept, _field_of_a_pod, _twice])
def test_invalid_objects_are_found(spoil: Any) -> None:
    found = copy.deepcopy(job())
    spoil(found)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(found)


def test_the_raycluster_is_the_one_of_the_rayjob(capsys: pytest.CaptureFixture[str]) -> None:
    assert manifests.main(["raycluster"]) == 0
    assert capsys.readouterr().out == (KUBERAY / "raycluster.yaml").read_text()
    assert objects("raycluster.yaml")[0]["spec"] == job()["spec"]["rayClusterSpec"]


def test_rules_become_a_prometheus_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert manifests.main(["rules"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    check(made)
    alerts = [rule["alert"] for group in made["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert {"DougaRewardFell", "DougaRoleAbsent", "DougaDiskNearlyFull"} <= set(alerts)
    assert made["spec"] == yaml.safe_load((ROOT / "deploy" / "observability" / "prometheus" / "rules.yml").read_text())


# The resources that the entrypoint requests, and those that the pods offer.


def words() -> list[str]:
    """The arguments of the entrypoint, as a shell splits them."""
    return shlex.split(job()["spec"]["entrypoint"])


def resolved(config: str) -> RunConfig:
    """The run that the entrypoint starts when its ConfigMap holds one of deploy/launch/configs."""
    assert words()[:2] == ["douga", "run"]
    flags, rest = split_flags(words()[2:], frozenset())
    assert rest == ["/etc/douga/run.toml"]
    return load_config(ROOT / "deploy" / "launch" / "configs" / f"{config}.toml", flags)


def pods() -> list[dict[str, float]]:
    """The resources that every worker pod offers to Ray: GPUs from the limit, custom resources from the group."""
    found = []
    for group in cluster_of(job())["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        offered = {"GPU": float(limits["nvidia.com/gpu"]), "CPU": float(limits["cpu"])}
        offered |= {name: float(quantity) for name, quantity in group["resources"].items()}
        found += [dict(offered) for _ in range(group["replicas"])]
    return found


def take(pod: dict[str, float], asked: Mapping[str, float]) -> bool:
    """Takes the resources from a pod. Returns whether it had them."""
    if any(pod.get(name, 0) < amount - 1e-9 for name, amount in asked.items()):
        return False
    for name, amount in asked.items():
        pod[name] -= amount
    return True


def unplaced(config: RunConfig, offered: list[dict[str, float]]) -> list[str]:
    """The processes without a pod, with learner and hub packed on one pod and the others placed one by one."""
    cluster = config.cluster
    packed: dict[str, float] = {}
    for bundle in bundles(config):
        packed = {name: packed.get(name, 0) + bundle.get(name, 0) for name in packed | bundle}
    missing = [] if any(take(pod, packed) for pod in offered) else ["learner"]
    for role in ("sampler", "rewarder"):
        asked = {"GPU": cluster.placement_of(role).gpus} | pin(cluster.placement_of(role).node)
        for number in range(cluster.placement_of(role).count):
            missing += [] if any(take(pod, asked) for pod in offered) else [f"{role}-{number}"]
    return missing


@pytest.mark.parametrize("config", CONFIGS)
def test_every_process_fits_into_a_pod(config: str) -> None:
    made, offered = resolved(config), pods()
    assert made.mode == "cluster"
    assert made.root.is_absolute()
    assert unplaced(made, offered) == []
    assert all(pod["GPU"] < 1e-9 for pod in offered), "GPUs that nobody uses"


@pytest.mark.parametrize(
    ("flags", "unplaced_names"),
    [
        ({"cluster.sampler.count": "33"}, ["sampler-32"]),
        ({"cluster.learner.count": "9"}, ["learner"]),
        ({"cluster.rewarder.node": "judges"}, ["rewarder-0", "rewarder-1"]),
    ],
)
def test_a_process_that_fits_into_no_pod_is_named(flags: dict[str, str], unplaced_names: list[str]) -> None:
    given, _ = split_flags(words()[2:], frozenset())
    given = {name.replace("-", "_"): value for name, value in given.items()} | flags
    assert (
        unplaced(load_config(ROOT / "deploy" / "launch" / "configs" / "a800-online.toml", given), pods())
        == unplaced_names
    )


def test_repeated_values_agree() -> None:
    found, made = cluster_of(job()), resolved("a800-online")
    assert f"ray=={found['rayVersion']}\n" in lock().read_text()
    for name, template in templates(found).items():
        spec = template["spec"]
        assert template["metadata"]["labels"]["douga/role"] == name
        assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsNonRoot"]) == (10001, True)
        assert len({container["image"] for container in spec["containers"]}) == 1
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= {one["name"] for one in spec["volumes"]}
    learner = templates(found)["learner"]["spec"]
    assert f"{made.folder}/prometheus" in learner["containers"][1]["command"]
    # The kubelet gives files of a volume to the group whenever it mounts it, unless told not to; then keys are refused.
    assert learner["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    claims = {found["metadata"]["name"] for found in objects("storage.yaml")}
    mounted = {v["persistentVolumeClaim"]["claimName"] for v in learner["volumes"] if "persistentVolumeClaim" in v}
    assert mounted == claims


def test_the_image_is_of_this_version() -> None:
    images = {c["image"] for one in templates(cluster_of(job())).values() for c in one["spec"]["containers"]}
    assert {image.rpartition(":")[2] for image in images} == {VERSION}
    assert f"douga:{VERSION} ." in DOCKERFILE.read_text()


def test_only_the_learners_pod_mounts_the_runs() -> None:
    """Its volume can be mounted on only one node."""
    holders = [name for name, one in templates(cluster_of(job())).items() if "douga-runs" in json.dumps(one)]
    assert holders == ["learner"]


# Where Prometheus finds the exporters.


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[str]:
    """Runs the container `targets` of the manifest on another port, for a run folder that does not exist yet."""
    command = templates(cluster_of(job()))["learner"]["spec"]["containers"][1]["command"]
    (port,) = free_ports(1)
    changed = {"python": sys.executable, "9464": str(port), "/runs/anime/prometheus": str(tmp_path / "prometheus")}
    process = subprocess.Popen(
        [changed.get(word, word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}/targets.json"
    finally:
        process.terminate()
        process.wait(10)


def test_prometheus_finds_the_exporters(targets: str, tmp_path: Path) -> None:
    def status() -> int:
        try:
            with urllib.request.urlopen(targets, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    wait_until(lambda: status() == 404, 30)  # before the run starts: an error for Prometheus, no crash
    (tmp_path / "prometheus").mkdir()
    listed = [{"targets": ["10.1.2.3:9000"], "labels": {"role": "sampler"}}]
    (tmp_path / "prometheus" / "targets.json").write_text(json.dumps(listed))
    with urllib.request.urlopen(targets, timeout=5) as answer:
        assert answer.headers["Content-Type"] == "application/json"  # Prometheus accepts no other type
        assert json.load(answer) == listed


def test_the_scrape_config_names_the_service() -> None:
    found = {one["kind"]: one for one in objects("monitoring.yaml")}
    service, (port,) = found["Service"], found["Service"]["spec"]["ports"]
    (discovery,) = found["ScrapeConfig"]["spec"]["httpSDConfigs"]
    assert discovery["url"] == f"http://{service['metadata']['name']}:{port['port']}/targets.json"
    learner = templates(cluster_of(job()))["learner"]
    assert service["spec"]["selector"].items() <= learner["metadata"]["labels"].items()
    assert port["targetPort"] in [one["name"] for one in learner["spec"]["containers"][1]["ports"]]


# The image.


def instructions() -> list[dict[str, str]]:
    return DockerfileParser(fileobj=DOCKERFILE.open("rb")).structure


def values(instruction: str) -> list[str]:
    return [one["value"] for one in instructions() if one["instruction"] == instruction]


def build_arguments() -> dict[str, str]:
    return dict(value.partition("=")[::2] for value in values("ARG"))


def test_hadolint_finds_nothing() -> None:
    """Except pinning: Debian's packages come with the base image, Python's versions are in the lock."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--ignore", "DL3008", "--ignore", "DL3013", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def lock() -> Path:
    """The lock file that the image installs."""
    return ROOT / "requirements" / f"lock-{build_arguments()['PYTHON']}.txt"


def test_the_image_has_the_projects_requirements() -> None:
    arguments = build_arguments()
    assert lock().exists()
    assert f"\nTORCH ?= torch=={arguments['TORCH']}\n" in (ROOT / "Makefile").read_text()
    first, last = re.findall("pip install (.*?)$", "\n".join(values("RUN")), re.MULTILINE)
    assert first == '--constraint requirements/lock-${PYTHON}.txt "torch==${TORCH}" ".[deepspeed]" ${MORE}'
    assert last == "--no-deps --force-reinstall ."
    assert values("USER")[-1] == "10001:10001"


def test_copied_files_exist_and_are_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for value in values("COPY") for word in value.split()[:-1]}
    assert {name.partition("/")[0] for name in copied} == kept
    assert all((ROOT / name).exists() for name in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in packages} <= copied


NOT_INSTALLED = (  # only in a checkout
    "requirements/",
    "benchmarks/results/",
    "deploy/rewards/recipes/",
    "deploy/launch/kuberay/",
    "deploy/launch/docker/",
)


def test_the_package_contains_every_data_file(tmp_path: Path) -> None:
    """Pages, weights, rubrics and configurations are part of the package."""
    copied = {word for value in values("COPY") for word in value.split()[:-1]}
    found = [file for top in copied for file in (ROOT / top).rglob("*") if file.is_file() and file.suffix != ".pyc"]
    wanted = {str(file.relative_to(ROOT)) for file in found}
    for name in wanted | {name for name in copied if (ROOT / name).is_file()}:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((ROOT / name).read_bytes())
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", tmp_path / "in"]
    done = subprocess.run([*wheel, "--wheel-dir", tmp_path], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(made).namelist())
    assert {name for name in wanted - inside if not name.startswith(NOT_INSTALLED)} == set()
    assert {name.rpartition("/")[2] for name in inside if ".dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
