"""Every metric that a run exports to Prometheus. The code, `docs/metrics.md` and the dashboards take names from here.

Which process exports which metrics (`Metric.by`):

```
hub         nearly all: everything known from run folder, ledger and journal
sampler     what only the sampler knows: its weight version, its part of a weight sync, its idle time
learner     its part of a weight sync, its idle time
rewarder    its idle time
serial      all of them: a serial run is one process
```

**Labels** have low cardinality: a role, a state, a dimension; never a prompt, a candidate or a version. No metric has a
worker label. Each worker has its own exporter, so its name is a label of the scrape *target* (`TARGET_LABELS`), and its
series end when the target goes away. The label for the kind of target is `process`, not `role`: otherwise Prometheus
would rename the metrics' own `role` label to `exported_role`.

**Counters** restart at 0 with their process, which `rate` and `increase` handle. **Gauges** are read from ledger and
folder at scrape time, so a resumed run shows its state at once. A gauge without a value (no step taken, no probe
reading, no GPU) has no series. This module imports neither torch nor the Prometheus client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.config.algorithm import BUILT_IN, algorithm_class
from common.exchange.api import LOST, State, WasteReason
from common.messages import Purpose
from common.roles import HUB, LEARNER, PHASES, PROCESSES, ROLES, SAMPLER
from learner.algorithms.base import MetricSpec

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

TARGET_LABELS = {
    "run": "name of the run",
    "process": "hub, learner, sampler or rewarder; serial in a serial run, which is one process",
    "worker": "hub, learner-0, sampler-3, ...; names of external workers (`douga worker`) are never reused",
    "node": "IP address of the process",
}
# From the Prometheus client library, for every process; not in `TABLE`.
OF_PROCESS = {
    "process_resident_memory_bytes": "resident host memory",
    "process_virtual_memory_bytes": "virtual address space",
    "process_cpu_seconds_total": "CPU time used",
    "process_open_fds": "open files and sockets",
    "process_max_fds": "limit of open files and sockets",
    "process_start_time_seconds": "start of the process (Unix time); it changes with every restart",
}

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
POINTS = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 100.0)
CLIPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

STATES = tuple(State)
WASTED = tuple(WasteReason)
SERVICES = ("exchange", "journal", "weights", "registry")
DIMENSION = "smoothness, motion, appeal, text, image, character, and outputs of reward.judges"
MODEL = "policy; base: clips of the base model, rescored for this reading; start: the same clips, scored at the start"

DEVICE = "CUDA index as seen by the process"


Values = tuple[str, ...] | str  # all values of a label, or a description of them


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `help` says what it means, its unit and its range."""

    name: str  # douga_...; base units; a counter ends in _total
    kind: str  # COUNTER, GAUGE or HISTOGRAM
    by: tuple[str, ...]  # processes that export it
    help: str
    labels: Mapping[str, Values] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()  # upper bounds; histograms only


HUB_ALONE = (HUB,)
BY_ROLE, BY_DIMENSION = {"role": ROLES}, {"dimension": DIMENSION}
BY_PROBED = {"dimension": f"reward (weighted mean), {DIMENSION}", "model": MODEL}
BY_PUSH_PHASE = {"phase": ("gather", "write", "transfer", "stage", "load")}

ROWS = (
    # Sampling.
    Metric("douga_candidates_total", COUNTER, HUB_ALONE, "Candidates stored by the exchange.",
           {"purpose": tuple(Purpose)}),
    Metric("douga_sample_seconds", HISTOGRAM, HUB_ALONE,
           "Seconds a sampler spends on one lease: up to sampler.micro_batch candidates of a prompt.", buckets=SECONDS),
    Metric("douga_candidates_wasted_total", COUNTER, HUB_ALONE,
           "Candidates whose sampling was wasted: the worker was lost (death), the lease had expired (late), the "
           "group failed (failed, nan) or its files were damaged (damage). 0 in a healthy run.",
           {"reason": WASTED}),
    # Scoring.
    Metric("douga_score_seconds", HISTOGRAM, HUB_ALONE, "Seconds a rewarder spends on one batch.", buckets=SECONDS),
    Metric("douga_score_batch_clips", HISTOGRAM, HUB_ALONE,
           "Clips per scoring batch, 1 to reward.batch. Small batches mean that rewarders are waiting for samplers.",
           buckets=CLIPS),
    Metric("douga_reward_score", HISTOGRAM, HUB_ALONE,
           "Raw scores of training candidates in points, nominally 0 to 100.", BY_DIMENSION, POINTS),
    # The queue.
    Metric("douga_queue_items", GAUGE, HUB_ALONE,
           "Training groups per state. The sum over all states is the number of groups ever admitted.",
           {"state": STATES}),
    Metric("douga_queue_admitted_total", COUNTER, HUB_ALONE, "Training groups admitted."),
    Metric("douga_queue_dropped_total", COUNTER, HUB_ALONE,
           "Training groups that ended without being trained on.", {"reason": LOST}),
    Metric("douga_blobs_bytes", GAUGE, HUB_ALONE,
           "Disk space used by latents and clips in bytes, 0 to douga_blobs_limit_bytes."),
    Metric("douga_blobs_limit_bytes", GAUGE, HUB_ALONE,
           "Limit in bytes (exchange.max_bytes). Samplers pause when it is reached."),
    Metric("douga_disk_free_bytes", GAUGE, HUB_ALONE, "Free bytes on the run folder's disk. At 0 the run stops."),
    # Training: means over the pairs of the last step.
    Metric("douga_step", GAUGE, HUB_ALONE,
           "Optimizer steps taken, out of douga_steps_configured. Drops after a rollback to a checkpoint."),
    Metric("douga_steps_configured", GAUGE, HUB_ALONE, "Optimizer steps that the run is configured to take."),
    Metric("douga_steps_total", COUNTER, HUB_ALONE,
           "Optimizer steps taken since the process started, including repeated ones."),
    Metric("douga_step_seconds", HISTOGRAM, HUB_ALONE,
           "Seconds per optimizer step, including commit, weight sync and checkpoint, without waiting for pairs.",
           buckets=SECONDS),
    Metric("douga_loss", GAUGE, HUB_ALONE, "Loss of the last step, mean over the batch."),
    Metric("douga_grad_norm", GAUGE, HUB_ALONE, "Gradient norm of the last step before clipping, >= 0."),
    Metric("douga_learning_rate", GAUGE, HUB_ALONE, "Learning rate of the last step, 0 to learner.lr."),
    Metric("douga_reward", GAUGE, HUB_ALONE, "Mean reward of the candidates that the last step trained on, 0 to 1."),
    Metric("douga_reference_refreshes_total", COUNTER, HUB_ALONE, "Times the reference was refreshed from the policy."),
    # Weight versions.
    Metric("douga_policy_version", GAUGE, (HUB, SAMPLER),
           "Weight version; 0 is the base model. Learner: newest published version. Sampler: version it holds.",
           {"role": ("learner", "sampler")}),
    Metric("douga_policy_lag_mean_pushes", GAUGE, HUB_ALONE,
           "Mean lag of the last step's pairs: weight syncs (pushes) since a pair was sampled."),
    Metric("douga_policy_lag_max_pushes", GAUGE, HUB_ALONE,
           "Maximum lag of the last step's pairs in pushes, 0 to douga_policy_lag_limit_pushes."),
    Metric("douga_policy_lag_limit_pushes", GAUGE, HUB_ALONE,
           "Maximum lag allowed (exchange.max_lag). Older pairs expire."),
    Metric("douga_pushes_total", COUNTER, HUB_ALONE, "Weight versions published since the process started."),
    Metric("douga_last_push_timestamp_seconds", GAUGE, HUB_ALONE, "Unix time at which the last version was published."),
    Metric("douga_push_interval_expected_seconds", GAUGE, HUB_ALONE,
           "Expected seconds between weight syncs at the pace of the last steps. If the last sync is several times "
           "older, the run has stalled."),
    Metric("douga_weight_push_seconds", HISTOGRAM, (HUB, LEARNER, SAMPLER),
           "Seconds of a weight sync by phase: the learner gathers and writes; each sampler receives (transfer), "
           "writes to disk (stage) and loads. Sampling pauses only for load. A serial run has no transfer and no "
           "stage.",
           BY_PUSH_PHASE, SECONDS),
    Metric("douga_weight_push_bytes_total", COUNTER, (LEARNER, SAMPLER),
           "Bytes of weights written by the learner (write), received by samplers as whole versions (transfer) or as "
           "differences (delta), and taken from another sampler of the node (shared).",
           {"phase": ("write", "transfer", "delta", "shared")}),
    # Workers.
    Metric("douga_phase", GAUGE, HUB_ALONE, "1 for the current phase of the run, 0 for the others.",
           {"phase": PHASES}),
    Metric("douga_busy_seconds_total", COUNTER, HUB_ALONE,
           "Seconds of work, summed over the workers of a role. Counted when a unit of work ends.", BY_ROLE),
    Metric("douga_idle_seconds_total", COUNTER, ROLES,
           "Seconds of waiting: samplers for admission, rewarders for clips, the learner for pairs. The role that "
           "waits least is the bottleneck. 0 in a serial run.", BY_ROLE),
    Metric("douga_workers_configured", GAUGE, HUB_ALONE, "Workers that the configuration asks for.", BY_ROLE),
    Metric("douga_workers_up", GAUGE, HUB_ALONE, "Workers that are running, external ones included.", BY_ROLE),
    Metric("douga_worker_crashes_total", COUNTER, HUB_ALONE,
           "Worker crashes. A crashed worker is restarted, at most cluster.restarts times per hour.", BY_ROLE),
    Metric("douga_nonfinite_total", COUNTER, HUB_ALONE,
           "Non-finite values: latents (sampler), scores (rewarder), loss or gradient (learner).", BY_ROLE),
    Metric("douga_requests_refused_total", COUNTER, HUB_ALONE,
           "Requests answered with an error: malformed, unknown, too large or impossible. Not in a serial run.",
           {"service": SERVICES}),
    Metric("douga_gpu_memory_allocated_bytes", GAUGE, PROCESSES,
           "GPU memory allocated to tensors of this process, in bytes.",
           {"device": DEVICE}),
    Metric("douga_gpu_memory_reserved_bytes", GAUGE, PROCESSES,
           "GPU memory reserved by this process's allocator, in bytes.",
           {"device": DEVICE}),
    Metric("douga_gpu_memory_total_bytes", GAUGE, PROCESSES, "GPU memory of the device, in bytes.",
           {"device": DEVICE}),
    # The latest reading of the guardrails: one clip per probe prompt (`guardrails.prompts`). Not in simulated runs.
    Metric("douga_probe_step", GAUGE, HUB_ALONE, "Optimizer step of the latest probe reading."),
    Metric("douga_probe_prompts", GAUGE, HUB_ALONE,
           "Number n of probe prompts in the reading. The standard error of a mean over them is "
           "douga_probe_reward_stddev / sqrt(n)."),
    Metric("douga_probe_reward", GAUGE, HUB_ALONE,
           "Mean trained score of the probe prompts, in points, nominally 0 to 100. base differs from start: the "
           "scorer drifted. policy differs from base: the policy changed.", BY_PROBED),
    Metric("douga_probe_reward_stddev", GAUGE, HUB_ALONE,
           "Sample standard deviation of douga_probe_reward over the prompts in points, >= 0.", BY_PROBED),
    Metric("douga_probe_judge", GAUGE, HUB_ALONE,
           "Mean score of the held-out judge, which is never trained on, in points, nominally 0 to 100. If it falls "
           "while the reward rises, the policy is hacking the reward.",
           {"dimension": "outputs of the judge; for toon prompts identity, motion, smoothness",
            "model": "policy, base"}),
    Metric("douga_probe_motion_ratio", GAUGE, HUB_ALONE,
           "Motion of the policy's clips divided by motion of the base model's clips, >= 0. Below "
           "guardrails.motion_floor the policy is freezing."),
    Metric("douga_guard_alarms_total", COUNTER, HUB_ALONE, "Guardrail alarms.",
           {"rule": "motion, scorer, judge ANSWER"}),
)  # fmt: skip


def exported_name(name: str) -> str:
    """Prometheus name of an algorithm's metric."""
    return f"douga_algorithm_{name}"


def algorithm_metric(spec: MetricSpec, whose: str = "") -> Metric:
    """Returns the table row of a metric that an algorithm declares; `whose` is prepended to its help text."""
    text = " ".join(filter(None, (whose, spec.help, spec.unit)))
    return Metric(exported_name(spec.name), GAUGE, HUB_ALONE, text)


def built_in_figures() -> dict[MetricSpec, list[str]]:
    """Returns every metric that built-in algorithms declare -> the names of these algorithms."""
    found: dict[MetricSpec, list[str]] = {}
    for name in BUILT_IN:
        for spec in algorithm_class(name).metrics:
            found.setdefault(spec, []).append(name)
    return found


OF_ALGORITHMS = [algorithm_metric(spec, f"({', '.join(names)})") for spec, names in built_in_figures().items()]
TABLE = {metric.name: metric for metric in (*ROWS, *OF_ALGORITHMS)}
