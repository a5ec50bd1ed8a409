"""The contents of the Grafana dashboards. `deploy/observability/grafana/dashboards.py` writes them as JSON.

Each `Panel` has a title, a unit, a description and queries by legend. `$run` is the run selected in Grafana. The
queries use the metrics of `deploy/observability/definitions.py` and the recording rules of
`deploy/observability/prometheus/rules.yml`.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.observability.definitions import built_in_figures, exported_name

STAT, LINES, STACKED, HEAT = "stat", "lines", "stacked", "heat"
SHARE, SECONDS, BYTES, BYTES_RATE, PER_SECOND, POINTS, NUMBER = (
    "percentunit",
    "s",
    "bytes",
    "Bps",
    "ops",
    "none",
    "short",
)
PERCENT = "percent"  # 0 .. 100
WHEN, NAME = "dateTimeFromNow", "name"  # of a stat: show the legend instead of the value


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    unit: str
    tells: str
    queries: dict[str, str]  # legend -> PromQL
    kind: str = LINES
    width: int = 12  # of 24


@dataclass(frozen=True)
class Dashboard:
    """One dashboard. `name` is its file name and URL; `tells` is the question that it answers."""

    name: str
    title: str
    tells: str
    panels: tuple[Panel, ...]


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Median and 95th percentile of a histogram, per value of the label `by`."""
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    rise = f'sum by ({labels}) (rate({metric}_bucket{{run="$run"}}[$__rate_interval]))'
    return {
        f"{legend}median": f"histogram_quantile(0.5, {rise})",
        f"{legend}95 %": f"histogram_quantile(0.95, {rise})",
    }


def rates(metric: str, by: str) -> dict[str, str]:
    """Increase of a counter per second."""
    return {f"{{{{{by}}}}}": f'sum by ({by}) (rate({metric}{{run="$run"}}[$__rate_interval]))'}


# fmt: off
OVERVIEW = Dashboard("overview", "douga: overview", "Is the run making progress, and which role is the bottleneck?", (
    Panel("Phase", NAME, "Current phase of the run.",
          {"{{phase}}": 'douga_phase{run="$run"} == 1'}, STAT, 4),
    Panel("Steps", NUMBER, "Optimizer steps taken, and the configured total.",
          {"taken": 'douga_step{run="$run"}',
           "total": 'douga_steps_configured{run="$run"}'}, STAT, 6),
    Panel("Time left", SECONDS, "At the pace of the last ten minutes.",
          {"left":
           'max by (run) (douga_steps_configured{run="$run"} - douga_step) / (sum by (run) '
           '(rate(douga_steps_total{run="$run"}[10m])) > 0)'}, STAT, 4),
    Panel("Last weight sync", WHEN, "When the newest version was published.",
          {"published": '1000 * douga_last_push_timestamp_seconds{run="$run"}'}, STAT, 4),
    Panel("Alerts", NUMBER, "Alerts firing now; docs/alerts.md explains each of them.",
          {"firing": 'count(ALERTS{run="$run", alertstate="firing"}) or vector(0)'}, STAT, 6),
    Panel("Idle time by role", SHARE,
          "Share of time that a role waits, mean over its workers. The role that waits least is the bottleneck. A "
          "serial run has one process, which never waits.",
          {"{{role}}": 'run_role:douga_idle:ratio_rate5m{run="$run"}'}),
    Panel("Busy time by role", SHARE,
          "Share of time that a role works, mean over its workers. Counted when a unit of work ends.",
          {"{{role}}":
           'sum by (role) (rate(douga_busy_seconds_total{run="$run"}[$__rate_interval])) / on (role) (max by (role) '
           '(douga_workers_up{run="$run"}) > 0)'}),
    Panel("Groups in flight", NUMBER, "Training groups by state. A growing state waits for the next role.",
          {"{{state}}":
           'max by (state) (douga_queue_items{run="$run", state=~"pending|sampling|sampled|scoring|ready|training"})'},
          STACKED),
    Panel("Finished groups", NUMBER, "Trained, tied, expired or failed groups since the run began.",
          {"{{state}}": 'max by (state) (douga_queue_items{run="$run", state=~"trained|tied|expired|failed"})'}),
    Panel("Weight versions", NUMBER, "The learner's newest version, and the oldest and newest that samplers hold.",
          {"learner": 'max(douga_policy_version{run="$run", role="learner"})',
           "oldest sampler": 'min(douga_policy_version{run="$run", role="sampler"})',
           "newest sampler": 'max(douga_policy_version{run="$run", role="sampler"})'}),
    Panel("Off-policy lag", NUMBER, "Weight syncs between sampling and training a pair. Above the limit it expires.",
          {"mean": 'douga_policy_lag_mean_pushes{run="$run"}',
           "max": 'douga_policy_lag_max_pushes{run="$run"}',
           "limit": 'douga_policy_lag_limit_pushes{run="$run"}'}),
    Panel("Candidates", PER_SECOND, "Candidates sampled per second, by purpose.",
          rates("douga_candidates_total", "purpose")),
    Panel("Wasted candidates", PER_SECOND, "Wasted candidates per second, by reason. None in a healthy run.",
          rates("douga_candidates_wasted_total", "reason")),
    Panel("Workers up", NUMBER, "Running workers by role, and the number configured.",
          {"{{role}}": 'max by (role) (douga_workers_up{run="$run"})',
           "{{role}} configured": 'max by (role) (douga_workers_configured{run="$run"})'}),
    Panel("Crashes and non-finite values", NUMBER, "By role, since the last start.",
          {"{{role}} crashes": 'sum by (role) (douga_worker_crashes_total{run="$run"})',
           "{{role}} non-finite": 'sum by (role) (douga_nonfinite_total{run="$run"})'}),
))

REWARDS = Dashboard("rewards", "douga: rewards and drift", "Does quality improve, or only the reward?", (
    Panel("Reward of trained candidates", SHARE, "Mean reward of the last step's pairs, chosen and rejected, 0 to 1.",
          {"reward": 'douga_reward{run="$run"}'}),
    Panel("Probes: policy minus base", POINTS,
          "Mean trained score of the probe prompts, policy minus base model, in points.",
          {"{{dimension}}":
           'max by (dimension) (douga_probe_reward{run="$run", model="policy"}) - max by (dimension) '
           '(douga_probe_reward{run="$run", model="base"})'}),
    Panel("Probes: held-out judge", POINTS,
          "Score of the held-out judge, policy minus base, in points. If it falls while the reward rises, the policy "
          "is hacking the reward.",
          {"{{dimension}}": 'run_dimension:douga_judge_change:points{run="$run"}'}),
    Panel("Policy drift", POINTS,
          "Policy minus base in standard errors of the base model's mean. Beyond 3 an alert fires.",
          {"{{dimension}}": 'run_dimension:douga_policy_drift:sigmas{run="$run"}'}),
    Panel("Scorer drift", POINTS,
          "Scores of the base model's clips now, minus their scores at the start, in points. 0 unless the scorer "
          "has changed.",
          {"{{dimension}}": 'run_dimension:douga_scorer_drift:points{run="$run"}'}),
    Panel("Probes: scores", POINTS, "Mean trained score of the probe prompts under the policy, in points.",
          {"{{dimension}}": 'douga_probe_reward{run="$run", model="policy"}'}),
    Panel("Probes: motion", SHARE,
          "Motion of the policy's clips divided by the base model's. "
          "Below guardrails.motion_floor the policy is freezing.",
          {"motion": 'douga_probe_motion_ratio{run="$run"}'}),
    Panel("Scores of training candidates", POINTS, "Raw scores in points, by dimension.",
          quantiles("douga_reward_score", "dimension")),
    Panel("Score distribution", POINTS,
          "Scores per second and bucket, all dimensions. Scores that pile up at one end cannot tell clips apart.",
          {"{{le}}": 'sum by (le) (rate(douga_reward_score_bucket{run="$run"}[$__rate_interval]))'}, HEAT),
    Panel("Guardrail alarms", NUMBER, "Alarms by rule, since the last start.",
          {"{{rule}}": 'sum by (rule) (douga_guard_alarms_total{run="$run"})'}),
    Panel("Last probe reading", NUMBER, "Optimizer step of the latest probe reading, and the current step.",
          {"reading": 'douga_probe_step{run="$run"}',
           "step": 'douga_step{run="$run"}'}),
))

# One panel for every figure that a built-in algorithm declares; a run fills those of its own.
FIGURES = [
    Panel(spec.name.replace("_", " ").capitalize(), POINTS, f"Algorithm {', '.join(names)}. {spec.help}",
          {spec.name.replace("_", " "): f'{exported_name(spec.name)}{{run="$run"}}'})
    for spec, names in built_in_figures().items()
]  # fmt: skip

LEARNER = Dashboard("learner", "douga: learner", "Is the policy learning, and how?", (
    Panel("Loss", POINTS, "Loss of the last step. With GAPO it is gap x log 2 right after a reference refresh.",
          {"loss": 'douga_loss{run="$run"}'}),
    Panel("Gradient norm", POINTS, "Gradient norm of the last step before clipping.",
          {"norm": 'douga_grad_norm{run="$run"}'}),
    Panel("Learning rate", POINTS, "Learning rate of the last step (learner.lr_schedule).",
          {"rate": 'douga_learning_rate{run="$run"}'}),
    *FIGURES,
    Panel("Reference refreshes", NUMBER, "Reference refreshes since the last start.",
          {"refreshes": 'sum(douga_reference_refreshes_total{run="$run"})'}),
    Panel("Step time", SECONDS, "Includes commit, weight sync and checkpoint, but not waiting for pairs.",
          quantiles("douga_step_seconds")),
    Panel("Steps per second", PER_SECOND, "Optimizer steps per second, including steps repeated after a rollback.",
          {"steps": 'sum(rate(douga_steps_total{run="$run"}[$__rate_interval]))'}),
))

EXCHANGE = Dashboard("exchange", "douga: exchange and weights", "What do clips and weights cost in time and disk?", (
    Panel("Time to sample a group", SECONDS, "All candidates of a prompt; one for held-out prompts.",
          quantiles("douga_sample_seconds")),
    Panel("Time to score a batch", SECONDS, "Time a rewarder spends on one batch.",
          quantiles("douga_score_seconds")),
    Panel("Clips per scoring batch", NUMBER, "Small batches mean that rewarders are waiting for samplers.",
          quantiles("douga_score_batch_clips")),
    Panel("Groups admitted and dropped", PER_SECOND, "Groups per second; dropped ones by reason.",
          {"admitted": 'sum(rate(douga_queue_admitted_total{run="$run"}[$__rate_interval]))',
           "{{reason}}": 'sum by (reason) (rate(douga_queue_dropped_total{run="$run"}[$__rate_interval]))'}),
    Panel("Share lost in the last hour", SHARE, "Groups that expired, and candidates sampled for nothing.",
          {"expired": 'run:douga_expired:ratio_increase1h{run="$run"}',
           "wasted": 'run:douga_wasted:ratio_increase1h{run="$run"}'}),
    Panel("Disk used by latents and clips", BYTES, "Samplers pause at the limit, exchange.max_bytes.",
          {"used": 'douga_blobs_bytes{run="$run"}',
           "limit": 'douga_blobs_limit_bytes{run="$run"}'}),
    Panel("Weight sync time by phase", SECONDS, "Sampling pauses only during load.",
          quantiles("douga_weight_push_seconds", "phase")),
    Panel("Weight sync traffic", BYTES_RATE, "Bytes per second that the learner writes and samplers receive or share.",
          rates("douga_weight_push_bytes_total", "phase")),
    Panel("Time since the last weight sync", SECONDS, "An alert may fire after three intervals at the current pace.",
          {"elapsed": 'time() - douga_last_push_timestamp_seconds{run="$run"}',
           "alert": '3 * douga_push_interval_expected_seconds{run="$run"}'}),
    Panel("Rejected requests", PER_SECOND,
          "Rejected requests per second, by service. Normally none.",
          rates("douga_requests_refused_total", "service")),
))

HARDWARE = Dashboard("hardware", "douga: hardware", "Are processes, memory and disks healthy?", (
    Panel("Processes", NUMBER, "1 if Prometheus can scrape the process.",
          {"{{worker}}": 'up{run="$run", process!="ray"}'}),
    Panel("Process uptime", SECONDS, "Drops to 0 at a restart.",
          {"{{worker}}": 'time() - process_start_time_seconds{run="$run"}'}),
    Panel("CPU", NUMBER, "CPU cores used per process.",
          {"{{worker}}": 'rate(process_cpu_seconds_total{run="$run"}[$__rate_interval])'}),
    Panel("Host memory", BYTES, "Resident memory per process.",
          {"{{worker}}": 'process_resident_memory_bytes{run="$run"}'}),
    Panel("GPU memory", BYTES, "Memory reserved by the allocator, and the total of the GPU. Empty on CPUs.",
          {"{{worker}}": 'douga_gpu_memory_reserved_bytes{run="$run"}',
           "{{worker}} total": 'max by (worker) (douga_gpu_memory_total_bytes{run="$run"})'}),
    Panel("GPU memory of tensors", BYTES, "The part of the reserved memory that tensors use.",
          {"{{worker}}": 'douga_gpu_memory_allocated_bytes{run="$run"}'}),
    Panel("Free disk space", BYTES, "On the run folder's disk. At 0 the run stops.",
          {"free": 'douga_disk_free_bytes{run="$run"}'}),
    Panel("Nodes: CPU and GPU", PERCENT, "Utilisation reported by Ray, including other programs. GPUs by index.",
          {"{{instance}} CPU": 'ray_node_cpu_utilization{run="$run"}',
           "{{instance}} GPU {{GpuIndex}}": 'ray_node_gpus_utilization{run="$run"}'}),
    Panel("Nodes: memory", SHARE, "Host memory in use on each node, reported by Ray.",
          {"{{instance}}": 'ray_node_mem_used{run="$run"} / ray_node_mem_total'}),
    Panel("Open files and sockets", SHARE, "Share of the limit per process.",
          {"{{worker}}": 'process_open_fds{run="$run"} / process_max_fds'}),
))
# fmt: on

ALL = (OVERVIEW, REWARDS, LEARNER, EXCHANGE, HARDWARE)
