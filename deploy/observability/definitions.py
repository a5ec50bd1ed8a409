"""Every metric that a run exports to Prometheus: the table that code, `docs/metrics.md` and dashboards take names from.

Who exports what (`Metric.by`):

```
hub         what run folder, ledger and journal know: nearly all; in a serial run its only process, which exports all
sampler     what only the worker itself knows: the version it holds, its part of a weight push, its idle time
learner     its part of a weight push, its idle time
rewarder    its idle time
```

**Labels** are of low cardinality: a role, a state, a dimension; never a prompt, a candidate, a version. No metric has a
worker as label: each worker has an exporter of its own, so its name comes as a label of the *target* (`TARGET_LABELS`),
as many as there are processes, and its series end with the target. A target's kind is called `process`: were it called
`role`, Prometheus would rename the metrics' own `role` to `exported_role`.

**Counters** begin at 0 with every start of their process (`rate` and `increase` know that). Gauges are read when they
are asked for, from ledger and folder, so a resumed run shows at once where it stands. A gauge that is not known yet (no
step taken, no reading, no GPU) has no series. Imports no torch and no Prometheus client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.config.algorithm import BUILT_IN, algorithm_class
from common.roles import HUB, LEARNER, PHASES, PROCESSES, ROLES, SAMPLER
from learner.algorithms.base import MetricSpec

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

TARGET_LABELS = {
    "run": "the run's name",
    "process": "hub, learner, sampler or rewarder; serial: all in one process",
    "worker": "hub, learner-0, sampler-3, ...; a guest's name is never given twice",
    "node": "the process's own address",
}
# Of the Prometheus client itself, about every process: not in `TABLE`.
OF_PROCESS = {
    "process_resident_memory_bytes": "host memory held",
    "process_virtual_memory_bytes": "address space",
    "process_cpu_seconds_total": "CPU time used",
    "process_open_fds": "files and sockets open",
    "process_max_fds": "files and sockets that may be open",
    "process_start_time_seconds": "start of the process, seconds since 1970; it changes with every restart",
}

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
POINTS = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 100.0)
CLIPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

STATES = (
    "pending", "sampling", "sampled", "scoring", "paired", "training", "trained", "tied", "expired", "failed", "done"
)  # fmt: skip
DROPPED, WASTED = ("tied", "expired", "failed"), ("death", "late", "failed", "nan", "damage")
SERVICES = ("exchange", "journal", "weights", "reception")
DIMENSION = "smoothness, motion, appeal, text, image, character, and outputs of reward.judges"
MODEL = "policy; base: version 0's clips, scored anew for this reading; start: the same clips, as scored at first"


Values = tuple[str, ...] | str  # all that a label can be, or in words what it is


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `help` says what it tells, its unit and its range."""

    name: str  # douga_...; base units; a counter ends in _total
    kind: str  # COUNTER, GAUGE or HISTOGRAM
    by: tuple[str, ...]  # the processes that export it
    help: str
    labels: Mapping[str, Values] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()  # upper bounds; of histograms


HUB_ALONE = (HUB,)
BY_ROLE, BY_DIMENSION = {"role": ROLES}, {"dimension": DIMENSION}
BY_PROBED = {"dimension": f"reward (the weighted mean), {DIMENSION}", "model": MODEL}
BY_PUSH_PHASE = {"phase": ("gather", "write", "transfer", "stage", "load")}

ROWS = (
    # Sampling.
    Metric("douga_candidates_total", COUNTER, HUB_ALONE, "Candidates taken in.",
           {"purpose": ("train", "probe", "eval")}),
    Metric("douga_sample_seconds", HISTOGRAM, HUB_ALONE,
           "Seconds a sampler works on a group: N candidates, or the one of a held-out prompt.", buckets=SECONDS),
    Metric("douga_candidates_wasted_total", COUNTER, HUB_ALONE,
           "Candidates that were sampled for nothing. 0 in a healthy run.",
           {"reason": WASTED}),
    # Scoring.
    Metric("douga_score_seconds", HISTOGRAM, HUB_ALONE, "Seconds a rewarder works on a batch.", buckets=SECONDS),
    Metric("douga_score_batch_clips", HISTOGRAM, HUB_ALONE,
           "Clips scored together, 1 .. reward.batch. Small batches: the rewarders wait for the samplers.",
           buckets=CLIPS),
    Metric("douga_reward_score", HISTOGRAM, HUB_ALONE,
           "Raw scores of training candidates, points, nominally 0 .. 100.", BY_DIMENSION, POINTS),
    # The queue.
    Metric("douga_queue_items", GAUGE, HUB_ALONE,
           "Training groups in a state, now. Over all states they sum up to the groups ever admitted.",
           {"state": STATES}),
    Metric("douga_queue_admitted_total", COUNTER, HUB_ALONE, "Training groups admitted."),
    Metric("douga_queue_dropped_total", COUNTER, HUB_ALONE,
           "Training groups that ended without being trained on.", {"reason": DROPPED}),
    Metric("douga_blobs_bytes", GAUGE, HUB_ALONE, "Latents and clips on disk, bytes, 0 .. douga_blobs_bound_bytes."),
    Metric("douga_blobs_bound_bytes", GAUGE, HUB_ALONE, "exchange.max_bytes: samplers wait at this bound."),
    Metric("douga_disk_free_bytes", GAUGE, HUB_ALONE, "Free on the run folder's disk, bytes. At 0 the run ends."),
    # Learning: means over the last step's pairs.
    Metric("douga_step", GAUGE, HUB_ALONE, "Optimizer steps taken, of douga_steps_wanted; falls back with a rollback."),
    Metric("douga_steps_wanted", GAUGE, HUB_ALONE, "Optimizer steps the run is to take."),
    Metric("douga_steps_total", COUNTER, HUB_ALONE, "Optimizer steps taken in this start, repeated ones too."),
    Metric("douga_step_seconds", HISTOGRAM, HUB_ALONE,
           "Seconds of an optimizer step with what follows it (commit, push, checkpoint), without the wait for pairs.",
           buckets=SECONDS),
    Metric("douga_loss", GAUGE, HUB_ALONE, "Loss of the last step."),
    Metric("douga_grad_norm", GAUGE, HUB_ALONE, "Gradient norm of the last step before clipping, >= 0."),
    Metric("douga_reward", GAUGE, HUB_ALONE, "Mean reward of the last step's candidates, 0 .. 1."),
    Metric("douga_reference_refreshes_total", COUNTER, HUB_ALONE, "Times the reference became the policy."),
    # Versions.
    Metric("douga_policy_version", GAUGE, (HUB, SAMPLER),
           "Weight version, 0 the base model: of the learner the newest published, of a sampler the one it holds.",
           {"role": ("learner", "sampler")}),
    Metric("douga_policy_lag_mean_pushes", GAUGE, HUB_ALONE, "Mean lag of the last step's pairs, pushes."),
    Metric("douga_policy_lag_max_pushes", GAUGE, HUB_ALONE,
           "Greatest lag of the last step's pairs, pushes, 0 .. douga_policy_lag_bound_pushes."),
    Metric("douga_policy_lag_bound_pushes", GAUGE, HUB_ALONE, "exchange.max_lag: older pairs expire."),
    Metric("douga_pushes_total", COUNTER, HUB_ALONE, "Versions published in this start."),
    Metric("douga_last_push_timestamp_seconds", GAUGE, HUB_ALONE, "When the last version was published, since 1970."),
    Metric("douga_push_interval_expected_seconds", GAUGE, HUB_ALONE,
           "Seconds from push to push at the pace of the last steps: far more since the last one is a stall."),
    Metric("douga_weight_push_seconds", HISTOGRAM, (HUB, LEARNER, SAMPLER),
           "Seconds of a push: the learner gathers and writes, each sampler receives (transfer), puts on disk (stage) "
           "and loads. Sampling pauses for load alone. A serial run has no transfer and no stage.",
           BY_PUSH_PHASE, SECONDS),
    Metric("douga_weight_push_bytes_total", COUNTER, (LEARNER, SAMPLER),
           "Bytes of weights published (write) and received by samplers (transfer).",
           {"phase": ("write", "transfer")}),
    # Workers.
    Metric("douga_phase", GAUGE, HUB_ALONE, "1 for what the run does now, 0 for the others.",
           {"phase": PHASES}),
    Metric("douga_busy_seconds_total", COUNTER, HUB_ALONE,
           "Seconds of work, summed over a role's workers; counted when a unit of work ends.", BY_ROLE),
    Metric("douga_idle_seconds_total", COUNTER, ROLES,
           "Seconds without work: a sampler waits for admission, a rewarder for clips, the learner for pairs. "
           "The role with the least sets the pace. 0 in a serial run.", BY_ROLE),
    Metric("douga_workers_wanted", GAUGE, HUB_ALONE, "Workers that the configuration asks for.", BY_ROLE),
    Metric("douga_workers_up", GAUGE, HUB_ALONE, "Workers that are there, guests too.", BY_ROLE),
    Metric("douga_restarts_total", COUNTER, HUB_ALONE,
           "Deaths of workers; each is started again, within cluster.restarts.", BY_ROLE),
    Metric("douga_nan_total", COUNTER, HUB_ALONE,
           "Not finite: latents (sampler), scores (rewarder), loss or gradient (learner).", BY_ROLE),
    Metric("douga_requests_refused_total", COUNTER, HUB_ALONE,
           "Requests answered with an error: malformed, unknown, too large, or not to be done. Not in a serial run.",
           {"service": SERVICES}),
    Metric("douga_gpu_memory_allocated_bytes", GAUGE, PROCESSES, "GPU memory of this process's tensors, bytes.",
           {"device": "CUDA index as the process sees it"}),
    Metric("douga_gpu_memory_reserved_bytes", GAUGE, PROCESSES, "GPU memory held by its allocator, bytes.",
           {"device": "as above"}),
    Metric("douga_gpu_memory_total_bytes", GAUGE, PROCESSES, "GPU memory there is, bytes.", {"device": "as above"}),
    # The guardrails' last reading: a clip for each of `guard.prompts` probe prompts. Not in simulated runs.
    Metric("douga_probe_step", GAUGE, HUB_ALONE, "Optimizer step of the last reading."),
    Metric("douga_probe_prompts", GAUGE, HUB_ALONE,
           "Probe prompts read, n. The standard error of a mean over them is sigma / sqrt(n)."),
    Metric("douga_probe_reward", GAUGE, HUB_ALONE,
           "Mean trained score over the probe prompts, points, 0 .. 100. base away from start: the scorer drifted; "
           "policy away from base: the policy did.", BY_PROBED),
    Metric("douga_probe_reward_sigma", GAUGE, HUB_ALONE,
           "Standard deviation of the same over the prompts, points, >= 0 (n - 1 in the denominator).", BY_PROBED),
    Metric("douga_probe_judge", GAUGE, HUB_ALONE,
           "Mean answer of the held-out judge, which is never trained on, points, nominally 0 .. 100. It falls while "
           "the reward rises: the reward is hacked.",
           {"dimension": "the judge's answers; of toon prompts identity, motion, smoothness",
            "model": "policy, base"}),
    Metric("douga_probe_motion_ratio", GAUGE, HUB_ALONE,
           "Motion of the policy's clips over the base clips', >= 0. Below guard.motion_floor the policy freezes."),
    Metric("douga_guard_alarms_total", COUNTER, HUB_ALONE, "Alarms of the guardrails.",
           {"rule": "motion, scorer, judge ANSWER"}),
)  # fmt: skip


def exported_name(name: str) -> str:
    """What Prometheus calls a figure of the algorithm."""
    return f"douga_algorithm_{name}"


def algorithm_metric(spec: MetricSpec, whose: str = "") -> Metric:
    """The row of a figure that an algorithm declares."""
    text = " ".join(filter(None, (whose, spec.help, spec.unit)))
    return Metric(exported_name(spec.name), GAUGE, HUB_ALONE, text)


def built_in_figures() -> dict[MetricSpec, list[str]]:
    """Every figure that a built-in algorithm declares, and the algorithms that have it."""
    found: dict[MetricSpec, list[str]] = {}
    for name in BUILT_IN:
        for spec in algorithm_class(name).metrics:
            found.setdefault(spec, []).append(name)
    return found


OF_ALGORITHMS = [algorithm_metric(spec, f"({', '.join(names)})") for spec, names in built_in_figures().items()]
TABLE = {metric.name: metric for metric in (*ROWS, *OF_ALGORITHMS)}
