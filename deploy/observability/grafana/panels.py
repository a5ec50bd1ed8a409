"""What the dashboards show, as tables: `deploy/observability/grafana/dashboards.py` writes them for Grafana.

A row is a panel: its title, its unit, what it tells, and its queries by their legends. `$run` is the run that is
chosen; metrics are those of `deploy/observability/definitions.py` and the recorded ones of
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
WHEN, NAME = "dateTimeFromNow", "name"  # of a stat: the legend in the place of the value


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
    """One dashboard; `name` is its file and its address, `tells` the question that it answers."""

    name: str
    title: str
    tells: str
    panels: tuple[Panel, ...]


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Median and 95th percentile of a histogram, over all its labels but `by`."""
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    rise = f'sum by ({labels}) (rate({metric}_bucket{{run="$run"}}[$__rate_interval]))'
    return {
        f"{legend}median": f"histogram_quantile(0.5, {rise})",
        f"{legend}95 %": f"histogram_quantile(0.95, {rise})",
    }


def rates(metric: str, by: str) -> dict[str, str]:
    """A counter's rise per second."""
    return {f"{{{{{by}}}}}": f'sum by ({by}) (rate({metric}{{run="$run"}}[$__rate_interval]))'}


# fmt: off
OVERVIEW = Dashboard("overview", "douga: overview", "Does the run go on, and who waits for whom?", (
    Panel("Now", NAME, "What the run does.",
          {"{{phase}}": 'douga_phase{run="$run"} == 1'}, STAT, 4),
    Panel("Steps", NUMBER, "Taken, of those that are wanted.",
          {"taken": 'douga_step{run="$run"}',
           "wanted": 'douga_steps_wanted{run="$run"}'}, STAT, 6),
    Panel("Left", SECONDS, "At the pace of the last ten minutes.",
          {"left":
           'max by (run) (douga_steps_wanted{run="$run"} - douga_step) / (sum by (run) '
           '(rate(douga_steps_total{run="$run"}[10m])) > 0)'}, STAT, 4),
    Panel("Last push", WHEN, "When the newest version was published.",
          {"pushed": '1000 * douga_last_push_timestamp_seconds{run="$run"}'}, STAT, 4),
    Panel("Alerts", NUMBER, "That fire now; docs/alerts.md says what each means.",
          {"fire": 'count(ALERTS{run="$run", alertstate="firing"}) or vector(0)'}, STAT, 6),
    Panel("Who waits", SHARE,
          "Share of its time that a role waits, mean over its workers. The one that waits least sets the pace. A "
          "serial run has one process, which never waits.",
          {"{{role}}": 'run_role:douga_idle:ratio_rate5m{run="$run"}'}),
    Panel("Who works", SHARE,
          "Share of its time that a role works, mean over its workers; counted when a piece of work ends.",
          {"{{role}}":
           'sum by (role) (rate(douga_busy_seconds_total{run="$run"}[$__rate_interval])) / on (role) (max by (role) '
           '(douga_workers_up{run="$run"}) > 0)'}),
    Panel("Groups under way", NUMBER, "Training groups by state: a state that swells waits for the role after it.",
          {"{{state}}":
           'max by (state) (douga_queue_items{run="$run", state=~"pending|sampling|sampled|scoring|paired|training"})'},
          STACKED),
    Panel("Groups that ended", NUMBER, "Trained, or not: tied, expired, failed. All since the run began.",
          {"{{state}}": 'max by (state) (douga_queue_items{run="$run", state=~"trained|tied|expired|failed"})'}),
    Panel("Versions", NUMBER, "The learner's newest, and what samplers hold: oldest and newest.",
          {"learner": 'max(douga_policy_version{run="$run", role="learner"})',
           "oldest sampler": 'min(douga_policy_version{run="$run", role="sampler"})',
           "newest sampler": 'max(douga_policy_version{run="$run", role="sampler"})'}),
    Panel("Lag", NUMBER, "Of the last step's pairs, in pushes. Over the bound no pair is trained.",
          {"mean": 'douga_policy_lag_mean_pushes{run="$run"}',
           "greatest": 'douga_policy_lag_max_pushes{run="$run"}',
           "bound": 'douga_policy_lag_bound_pushes{run="$run"}'}),
    Panel("Candidates", PER_SECOND, "Sampled per second, by what for.",
          rates("douga_candidates_total", "purpose")),
    Panel("Candidates wasted", PER_SECOND, "Per second, by reason. Nothing in a healthy run.",
          rates("douga_candidates_wasted_total", "reason")),
    Panel("Workers there", NUMBER, "By role, beside those that are wanted.",
          {"{{role}}": 'max by (role) (douga_workers_up{run="$run"})',
           "{{role}} wanted": 'max by (role) (douga_workers_wanted{run="$run"})'}),
    Panel("Deaths and values that are not finite", NUMBER, "Since each start, by role.",
          {"{{role}} died": 'sum by (role) (douga_restarts_total{run="$run"})',
           "{{role}} not finite": 'sum by (role) (douga_nan_total{run="$run"})'}),
))

REWARDS = Dashboard("rewards", "douga: rewards and drift", "Does what is wanted get better, or what is rewarded?", (
    Panel("Reward of trained candidates", SHARE, "Mean over the last step's candidates, 0 to 1.",
          {"reward": 'douga_reward{run="$run"}'}),
    Panel("Probes: policy against base", POINTS,
          "Mean trained score of the probe prompts under the policy less that under the base model, points.",
          {"{{dimension}}":
           'max by (dimension) (douga_probe_reward{run="$run", model="policy"}) - max by (dimension) '
           '(douga_probe_reward{run="$run", model="base"})'}),
    Panel("Probes: held-out judge", POINTS,
          "The same of the judge that is never trained on. It falls while the reward rises: the reward is hacked.",
          {"{{dimension}}": 'run_dimension:douga_judge_change:points{run="$run"}'}),
    Panel("Policy drift", POINTS,
          "Policy against base in standard errors of the base model's mean. Beyond 3 there is an alert.",
          {"{{dimension}}": 'run_dimension:douga_policy_drift:sigmas{run="$run"}'}),
    Panel("Scorer drift", POINTS,
          "The base model's own clips, scored anew, less what they scored at the start, points. 0 as long as the "
          "scorer is the same.",
          {"{{dimension}}": 'run_dimension:douga_scorer_drift:points{run="$run"}'}),
    Panel("Probes: scores", POINTS, "Mean trained score of the probe prompts under the policy, points.",
          {"{{dimension}}": 'douga_probe_reward{run="$run", model="policy"}'}),
    Panel("Probes: motion", SHARE,
          "The policy's clips' motion as a share of the base model's. Below guard.motion_floor the policy freezes.",
          {"motion": 'douga_probe_motion_ratio{run="$run"}'}),
    Panel("Scores of training candidates", POINTS, "Points, by dimension.",
          quantiles("douga_reward_score", "dimension")),
    Panel("How scores spread", POINTS,
          "Candidates per second and bucket, all dimensions. Scores that pile up at an end cannot tell clips apart.",
          {"{{le}}": 'sum by (le) (rate(douga_reward_score_bucket{run="$run"}[$__rate_interval]))'}, HEAT),
    Panel("Alarms of the guardrails", NUMBER, "Since the start, by rule.",
          {"{{rule}}": 'sum by (rule) (douga_guard_alarms_total{run="$run"})'}),
    Panel("Last reading", NUMBER, "Optimizer step of the guardrails' last reading.",
          {"reading": 'douga_probe_step{run="$run"}',
           "step": 'douga_step{run="$run"}'}),
))

# One panel for every figure that a built-in algorithm declares; a run shows those of its own.
FIGURES = [
    Panel(spec.name.replace("_", " ").capitalize(), POINTS, f"Algorithm {', '.join(names)}. {spec.help}",
          {spec.name.replace("_", " "): f'{exported_name(spec.name)}{{run="$run"}}'})
    for spec, names in built_in_figures().items()
]  # fmt: skip

LEARNER = Dashboard("learner", "douga: learner", "Does it learn, and in which way?", (
    Panel("Loss", POINTS, "Of the last step.",
          {"loss": 'douga_loss{run="$run"}'}),
    Panel("Gradient norm", POINTS, "Before clipping.",
          {"norm": 'douga_grad_norm{run="$run"}'}),
    *FIGURES,
    Panel("Refreshes of the reference", NUMBER, "Since the start.",
          {"refreshes": 'sum(douga_reference_refreshes_total{run="$run"})'}),
    Panel("Time of a step", SECONDS, "With what follows it (commit, push, checkpoint), without the wait for pairs.",
          quantiles("douga_step_seconds")),
    Panel("Steps per second", PER_SECOND, "Repeated ones after a rollback too.",
          {"steps": 'sum(rate(douga_steps_total{run="$run"}[$__rate_interval]))'}),
))

EXCHANGE = Dashboard("exchange", "douga: exchange and weights", "What takes time and room, of clips and of weights?", (
    Panel("Time to sample a group", SECONDS, "N candidates, or the one of a held-out prompt.",
          quantiles("douga_sample_seconds")),
    Panel("Time to score a batch", SECONDS, "Of a rewarder.",
          quantiles("douga_score_seconds")),
    Panel("Clips scored together", NUMBER, "Small batches: the rewarders wait for the samplers.",
          quantiles("douga_score_batch_clips")),
    Panel("Groups admitted and dropped", PER_SECOND, "Per second.",
          {"admitted": 'sum(rate(douga_queue_admitted_total{run="$run"}[$__rate_interval]))',
           "{{reason}}": 'sum by (reason) (rate(douga_queue_dropped_total{run="$run"}[$__rate_interval]))'}),
    Panel("Share lost in the last hour", SHARE, "Groups that expired, candidates that were wasted.",
          {"expired": 'run:douga_expired:ratio_increase1h{run="$run"}',
           "wasted": 'run:douga_wasted:ratio_increase1h{run="$run"}'}),
    Panel("Room for latents and clips", BYTES, "On disk, beside exchange.max_bytes, where samplers wait.",
          {"held": 'douga_blobs_bytes{run="$run"}',
           "bound": 'douga_blobs_bound_bytes{run="$run"}'}),
    Panel("Time of a push, by phase", SECONDS, "Samplers pause for load alone.",
          quantiles("douga_weight_push_seconds", "phase")),
    Panel("Weights on their way", BYTES_RATE, "Bytes per second, written by the learner and received by samplers.",
          rates("douga_weight_push_bytes_total", "phase")),
    Panel("Since the last push", SECONDS, "Beside three intervals at the present pace, where there is an alert.",
          {"since": 'time() - douga_last_push_timestamp_seconds{run="$run"}',
           "alert": '3 * douga_push_interval_expected_seconds{run="$run"}'}),
    Panel("Requests refused", PER_SECOND,
          "Per second, by service. Where nobody knocks who should not, there are none.",
          rates("douga_requests_refused_total", "service")),
))

HARDWARE = Dashboard("hardware", "douga: hardware", "Do processes, memory and disks hold?", (
    Panel("Processes", NUMBER, "1 where Prometheus is answered, by worker.",
          {"{{worker}}": 'up{run="$run", process!="ray"}'}),
    Panel("Age of processes", SECONDS, "A restart begins anew.",
          {"{{worker}}": 'time() - process_start_time_seconds{run="$run"}'}),
    Panel("CPU", NUMBER, "Cores used, by worker.",
          {"{{worker}}": 'rate(process_cpu_seconds_total{run="$run"}[$__rate_interval])'}),
    Panel("Host memory", BYTES, "Held, by worker.",
          {"{{worker}}": 'process_resident_memory_bytes{run="$run"}'}),
    Panel("GPU memory", BYTES, "Held by the allocator, beside what there is, by worker. None on CPUs.",
          {"{{worker}}": 'douga_gpu_memory_reserved_bytes{run="$run"}',
           "{{worker}} there is": 'max by (worker) (douga_gpu_memory_total_bytes{run="$run"})'}),
    Panel("GPU memory of tensors", BYTES, "A part of the other.",
          {"{{worker}}": 'douga_gpu_memory_allocated_bytes{run="$run"}'}),
    Panel("Free on the run's disk", BYTES, "At 0 the run ends.",
          {"free": 'douga_disk_free_bytes{run="$run"}'}),
    Panel("Nodes: CPU and GPU", PERCENT, "As Ray sees each node, all that works there. GPUs by their number.",
          {"{{instance}} CPU": 'ray_node_cpu_utilization{run="$run"}',
           "{{instance}} GPU {{GpuIndex}}": 'ray_node_gpus_utilization{run="$run"}'}),
    Panel("Nodes: memory", SHARE, "Host memory in use, as Ray sees each node.",
          {"{{instance}}": 'ray_node_mem_used{run="$run"} / ray_node_mem_total'}),
    Panel("Open files and sockets", SHARE, "Share of those that may be, by worker.",
          {"{{worker}}": 'process_open_fds{run="$run"} / process_max_fds'}),
))
# fmt: on

ALL = (OVERVIEW, REWARDS, LEARNER, EXCHANGE, HARDWARE)
