"""Candidate sets of a tiny model: collected, resumed, and trained on as if their candidates had just been sampled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.sampler import Sampler
from common.candidate_set.folder import CandidateSet, read_set, writing_to
from common.config import RunConfig
from common.data.video import decode_clip
from common.errors import ConfigError
from common.exchange.local import LocalExchange
from common.messages import Purpose, Score
from common.models.cogvideox import open_model
from common.reward_composition import clip_reward
from common.seeds import candidate_seed
from common.weights.store import WeightStore
from common.weights.tensors import from_array
from deploy.annotate.sources import find_clips
from deploy.cli.main import main
from deploy.inspect import snapshot
from deploy.inspect.status import lines, run_status
from deploy.run_dir.jsonl import read_json_lines
from deploy.run_dir.layout import is_collected
from deploy.run_dir.progress import NullProgress, Status
from deploy.runtime import serial
from deploy.runtime.evaluation import StuckError
from rewarders import rewarder
from tests.support import toy
from tests.support.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "model", perturb=0.3)


def config(root: Path, model: Path, **flags: Any) -> RunConfig:
    base = {"model.path": model, "name": "base", "sampler.candidates": 3, "exchange.pipeline_depth": 2}
    return toy.config(root, **base | flags)


def collect(root: Path, model: Path, count: int = 4, **flags: Any) -> CandidateSet:
    how = config(root, model, **{"collect.prompts": count} | flags)
    result = serial.run(how, toy.rewards()).result
    assert result is not None
    return read_set(how.folder)


@pytest.fixture(scope="module")
def base(model: Path, tmp_path_factory: pytest.TempPathFactory) -> CandidateSet:
    """Three candidates of four prompts, by the base model."""
    return collect(tmp_path_factory.mktemp("base"), model)


@dataclass
class Shown(NullProgress):
    statuses: list[Status] = field(default_factory=list)

    def update(self, status: Status) -> None:
        self.statuses.append(status)


def content(candidates: CandidateSet) -> dict[str, tuple[Any, ...]]:
    """Everything of a set but the order of its rows."""
    return {
        name: (row, candidates.clip(row), candidates.latents(row), candidates.conditioning(row))
        for name, row in candidates.rows.items()
    }


def sampled_groups(run: Path) -> int:
    return sum(one["kind"] == "sampling" for one in read_json_lines(run / "timeline.jsonl"))


def test_every_candidate_is_what_the_sampler_makes_from_its_seed(
    base: CandidateSet, model: Path, tmp_path: Path
) -> None:
    how = config(tmp_path, model)
    sampler = Sampler(open_model(model), how)
    groups = base.groups()
    assert [len(rows) for rows in groups.values()] == [3] * 4
    for ordinal, rows in enumerate(groups.values()):
        seeds = [candidate_seed(0, Purpose.COLLECT, ordinal, index) for index in range(3)]
        assert [row.seed for row in rows] == seeds
        prompt = base.prompt(rows[0])
        encoded = sampler.encode(prompt)
        assert base.conditioning(rows[0]) == encoded
        for row, made in zip(rows, sampler.sample(prompt, encoded, seeds, range(3)), strict=True):
            assert base.latents(row) == made.latents
            assert base.clip(row) == made.clip
            assert row.scores == {one.dimension: one._value(decode_clip(made.clip)) for one in toy.rewards()}


def test_an_interrupted_collection_resumes_to_the_same_set(base: CandidateSet, model: Path, tmp_path: Path) -> None:
    how = config(tmp_path, model, **{"collect.prompts": 4})
    starts, shown = 0, Shown()
    while serial.run(how, toy.rewards(), stop=toy.after(4, lambda: True), progress=shown).result is None:
        starts += 1
        assert starts < 20
    assert starts > 1
    done = [status.done for status in shown.statuses]
    assert done == sorted(done)
    assert set(done) == {1, 2, 3, 4}
    assert content(read_set(how.folder)) == content(base)
    assert sampled_groups(how.folder) == 4  # also those that were in flight when it was interrupted


def test_a_larger_count_adds_prompts_and_samples_none_again(base: CandidateSet, model: Path, tmp_path: Path) -> None:
    collect(tmp_path, model, 2)
    whole = collect(tmp_path, model, 4)
    assert content(whole) == content(base)
    assert sampled_groups(whole.folder.parent) == 4


def test_a_prompt_that_fails_ends_the_collection_and_keeps_the_others(model: Path, tmp_path: Path) -> None:
    class Refuses(toy.HashReward):
        def score(self, clips: Any, prompts: Any) -> list[float]:
            return [float("nan") if prompt.ordinal == 1 else 1.0 for prompt in prompts]

    how = config(tmp_path, model, **{"collect.prompts": 3})
    bad = [*toy.rewards()[:-1], Refuses(toy.rewards()[-1].dimension)]
    with pytest.raises(StuckError, match=r"1 of 3 prompts have no candidates, .*nan score"):
        serial.run(how, bad)
    assert len(read_set(how.folder).rows) == 6
    assert serial.run(how, toy.rewards()).result == {"step": 0, "collected": 3, "candidates": 9}


def test_a_held_out_prompt_that_fails_is_left_out_and_tried_again(model: Path, tmp_path: Path) -> None:
    class Refuses(toy.HashReward):
        def score(self, clips: Any, prompts: Any) -> list[float]:
            return [float("nan") if prompt.ordinal in bad else 1.0 for prompt in prompts]

    bad = {1}
    how = config(tmp_path, model, **{"collect.prompts": 3, "collect.split": "heldout"})
    given = [*toy.rewards()[:-1], Refuses(toy.rewards()[-1].dimension)]
    result = serial.run(how, given).result
    assert result is not None
    (left_out,) = result.pop("left_out")
    assert result == {"step": 0, "collected": 2, "candidates": 6}
    assert left_out["reason"].startswith("nan score")
    assert left_out["id"] not in {row.prompt_id for row in read_set(how.folder).rows.values()}
    assert not is_collected(how)
    bad.clear()
    assert serial.run(how, given).result == {"step": 0, "collected": 3, "candidates": 9}
    assert is_collected(how)


def test_the_weights_of_a_run_sample(base: CandidateSet, model: Path, tmp_path: Path) -> None:
    trained = config(tmp_path, model, name="trained", steps=2)
    result = serial.run(trained, toy.rewards()).result
    assert result is not None
    version = result["version"]
    flags = {"collect.run": trained.folder, "collect.version": version}
    found = collect(tmp_path, model, 2, **flags)
    assert {(row.version, row.weights) for row in found.rows.values()} == {(version, result["weights_digest"])}
    assert found.rows.keys().isdisjoint(base.rows)
    row = next(iter(found.rows.values()))
    sampler = Sampler(open_model(model), trained)
    sampler.load(*WeightStore(trained.folder / "weights").load(version))
    prompt = found.prompt(row)
    seeds = [one.seed for one in found.groups()[row.group]]
    made = sampler.sample(prompt, sampler.encode(prompt), seeds, range(3))
    assert found.latents(row) == made[0].latents
    of_base = collect(tmp_path, model, 2, **flags | {"collect.version": 0, "name": "base-of-run"})
    assert of_base.rows.keys() == set(list(base.rows)[:6])  # the base model has one name in all sets


def train(root: Path, model: Path, candidates: CandidateSet, **flags: Any) -> RunConfig:
    return config(root, model, **{"name": "offline", "candidates": candidates.folder, "prompts": "toon"} | flags)


def test_the_learner_gets_the_stored_candidates(base: CandidateSet, model: Path, tmp_path: Path) -> None:
    how = train(tmp_path, model, base)
    roles = serial.open_roles(how, toy.rewards())
    exchange = LocalExchange(tmp_path / "ledger", how, roles.prompts)
    try:
        while roles.sampler.work(exchange):
            pass
        while roles.rewarder.work(exchange):
            pass
        given = exchange.lease_batch("learner-0", 1, 2)
    finally:
        exchange.close()
    groups = {rows[0].prompt_id: rows for rows in base.groups().values()}
    for one in given:
        rows = groups[roles.prompts(one.ordinal).id]
        rewards = [clip_reward(how.reward, row.scores) for row in rows]
        best, worst = max(range(3), key=rewards.__getitem__), min(range(3), key=rewards.__getitem__)
        assert one.selection.candidates == (best, worst)
        assert one.rewards == (rewards[best], rewards[worst])
        for latents, index in zip(one.latents, (best, worst), strict=True):
            assert torch.equal(from_array(latents), from_array(base.latents(rows[index])))
        assert one.conditioning == base.conditioning(rows[0])


def test_other_weights_of_the_reward_choose_other_pairs_of_the_same_set(
    base: CandidateSet, model: Path, tmp_path: Path
) -> None:
    def chosen(**flags: Any) -> list[tuple[int, ...]]:
        how = train(tmp_path, model, base, **flags)
        roles = serial.open_roles(how, toy.rewards())
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        exchange = LocalExchange(folder, how, roles.prompts)
        try:
            while roles.sampler.work(exchange) or roles.rewarder.work(exchange):
                pass
            return [one.selection.candidates for one in exchange.lease_batch("learner-0", 1, 2)]
        finally:
            exchange.close()

    assert chosen(**{"reward.feedback": "motion"}) != chosen(**{"reward.feedback": "text"})


def test_training_on_a_set_samples_no_training_clip_and_resumes_to_the_same_weights(
    base: CandidateSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[Purpose] = []
    real = Sampler.parts
    monkeypatch.setattr(
        Sampler, "parts", lambda self, prompt, *rest: (sampled.append(prompt.purpose), real(self, prompt, *rest))[1]
    )
    whole = serial.run(train(tmp_path / "whole", model, base), toy.rewards()).result
    assert whole is not None
    assert set(sampled) == {Purpose.EVAL}
    how = train(tmp_path / "cut", model, base)
    starts = 0
    while (cut := serial.run(how, toy.rewards(), stop=toy.after(9, lambda: True)).result) is None:
        starts += 1
        assert starts < 40
    assert starts > 1
    assert cut["weights_digest"] == whole["weights_digest"]


def test_a_run_that_samples_nothing_loads_no_model_and_trains_the_same_weights(
    base: CandidateSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"learner.caption_drop": 0.5, "steps": 2}  # needs the embedding of the empty caption
    whole = serial.run(train(tmp_path / "whole", model, base, **flags), toy.rewards()).result
    assert whole is not None

    def refused(*_: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(Sampler, "__init__", refused)
    monkeypatch.setattr(rewarder, "rewarder_for", refused)
    how = train(tmp_path / "alone", model, base, **flags | {"evaluation.prompts": 0})
    alone = serial.run(how).result
    assert alone is not None
    assert alone["weights_digest"] == whole["weights_digest"]
    assert serial.run(how).result == alone  # finished: nothing is done again
    assert lines(run_status(snapshot.RunReader(how.folder).read()))[:2] == ["offline: finished", "finished"]


def test_a_run_is_not_resumed_on_a_set_that_has_grown(model: Path, tmp_path: Path) -> None:
    small = collect(tmp_path, model, 3)
    how = train(tmp_path, model, small)
    assert serial.run(how, toy.rewards(), stop=toy.after(9, lambda: True)).result is None
    collect(tmp_path, model, 4)
    with pytest.raises(ConfigError, match=r"the set has changed since .* began \(9 candidates then, 12 now\)"):
        serial.run(how, toy.rewards())


def test_a_run_that_samples_nothing_takes_gpus_for_its_learner_alone(tmp_path: Path, model: Path) -> None:
    gpu = {"mode": "cluster", "model.device": "cuda", "cluster.learner.gpus": 1, "candidates": "set"}
    how = config(tmp_path, model, **gpu | {"evaluation.prompts": 0})
    assert [how.gpus_of(role) for role in ("sampler", "rewarder", "learner")] == [0, 0, 1]
    with pytest.raises(ConfigError, match=r"cluster.sampler.gpus = 0, but model.device = 'cuda'"):
        config(tmp_path, model, **gpu)


def test_no_group_of_a_set_is_too_old(base: CandidateSet, model: Path, tmp_path: Path) -> None:
    how = train(tmp_path, model, base, **{"steps": 6, "exchange.max_lag": 0, "exchange.order": "fifo"})
    assert serial.run(how, toy.rewards()).result is not None
    status = run_status(snapshot.RunReader(how.folder).read())
    assert "expired" not in status.queue
    assert status.queue["trained"] == 12


def test_a_status_of_a_collection_counts_prompts(base: CandidateSet) -> None:
    text = lines(run_status(snapshot.RunReader(base.folder.parent).read()))
    assert text[:2] == ["base: finished", "12 candidates of 4 prompts"]
    assert "step" not in "".join(line for line in text if not line.startswith(("rates", "last")))


def test_people_can_rate_the_candidates(base: CandidateSet) -> None:
    folder, clips = find_clips(base.folder.parent)
    assert folder == base.folder
    assert [clip.name for clip in clips] == [row.clip for row in base.rows.values()]
    first, row = clips[0], next(iter(base.rows.values()))
    assert (first.prompt, first.source, first.category) == (row.prompt, "base", row.category)
    assert first.first_frame is not None
    assert first.first_frame() == base.prompt(row).image


@pytest.mark.parametrize("key", ["pairs", "candidates", "verify", "simulate"])
def test_a_collection_trains_nothing(model: Path, tmp_path: Path, key: str) -> None:
    value = "true" if key in ("verify", "simulate") else "somewhere"
    with pytest.raises(ConfigError, match=f"collect.prompts = 2: nothing is trained; remove {key}"):
        config(tmp_path, model, **{"collect.prompts": 2, key: value})


# The commands.


def test_a_set_is_collected_shown_checked_merged_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--mode", "serial", "--sampler.candidates", "2", "--sampler.steps", "2"]
    assert main(["collect", "--count", "2", *small]) == 0
    assert "4 candidates of 2 prompts: runs/toon-candidates/candidates" in capsys.readouterr().out
    assert main(["collect", "--count", "2", *small]) == 0
    assert "already finished; raise --count to collect more" in capsys.readouterr().out
    assert main(["candidates", "show", "runs/toon-candidates"]) == 0
    assert "4 candidates of 2 prompts, 1 policies, groups of 2" in " ".join(capsys.readouterr().out.split())
    assert main(["candidates", "merge", "all", "runs/toon-candidates"]) == 0
    assert main(["candidates", "check", "all"]) == 0
    assert "all: 4 candidates, 0 damaged" in capsys.readouterr().out
    assert main(["score", "all"]) == 0
    said = capsys.readouterr()
    assert "all: 0 scores added, 0 clips could not be scored" in said.out
    assert "from other weights or code" not in said.out + said.err
    before = read_set(Path("all"))
    assert main(["score", "all", "--again"]) == 0
    rows = read_set(Path("all")).rows
    assert {name: row.scores for name, row in rows.items()} == {name: row.scores for name, row in before.rows.items()}
    with writing_to(Path("all")) as writer:
        writer.add_scores({name: Score(name, "older heads", {"motion": 1.0}) for name in list(rows)[:3]})
    assert main(["score", "all"]) == 0
    said = capsys.readouterr()
    assert "motion: 3 of 4 scores are from other weights or code, or were given together" in said.out + said.err
    clip = Path("all") / next(iter(rows.values())).clip
    clip.write_bytes(b"")
    assert main(["candidates", "check", "all"]) == 1
    assert f"{clip}: differs from its digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["collect"], "prompts = 'toon': there is no end of them; give --count"),
        (
            ["collect", "--collect.split", "heldout"],
            "collect.split = 'heldout': give the number of prompts with --count",
        ),
        (["collect", "x.toml", "--version", "2", "--count", "1"], "--version 2: x.toml is a configuration file"),
        (["collect", "nothing", "--count", "1"], "nothing: no run folder"),
        (["candidates", "show", "nothing"], "nothing: no candidate set (no set.json)"),
        (["run", "--candidates", "nothing"], "nothing: no candidate set (no set.json)"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--mode", "serial"] if command[0] == "run" else command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("runs").exists()
