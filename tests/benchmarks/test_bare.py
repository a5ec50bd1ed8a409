"""On a bare GPU machine there is no Ray, ZeroMQ or DeepSpeed: the benchmarks of models do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARE = """
from tests.support.bare import hide

hide({"ray", "zmq", "deepspeed", "prometheus_client", "jinja2", "scipy", "sentencepiece"})
"""
IMPORTS = "import benchmarks.sampling, benchmarks.learning, benchmarks.iteration\n"
SAMPLES = """
from actors.sampler import Sampler
from benchmarks import sampling
from benchmarks.options import RandomImagePrompts
from common.config import load_config
from tests.support.small_models import small_model

model, config = small_model("5b-i2v"), load_config(flags={"sampler.steps": 1, "sampler.candidates": 2})
prompt = RandomImagePrompts(True)(0)
print(len(sampling.ours(Sampler(model, config), prompt, [1, 2])))
print(len(sampling.plain(sampling.open_pipeline(model, config), config, prompt, [1, 2])))
"""


GOES_ROUND = """
import sys
from pathlib import Path
from benchmarks import iteration
from tests.support.small_models import small_model
from tests.benchmarks.test_iteration import SIZE, given

asked = given(model="5b-i2v", micro_batch=None, **SIZE)
print(iteration.iterate(asked, small_model("5b-i2v"), Path(sys.argv[1]), iteration.PhaseTimer("cpu")))
"""


def bare(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def test_the_benchmarks_import_and_sample_without_what_a_bare_machine_lacks() -> None:
    ran = bare(IMPORTS + SAMPLES)
    assert ran.stdout.split() == ["2", "2"], ran.stderr


def test_a_whole_iteration_learns_and_pushes_there(tmp_path: Path) -> None:
    ran = bare(GOES_ROUND, str(tmp_path))
    assert ran.stdout.split() == ["True"], ran.stderr


def test_what_is_missing_is_missing() -> None:
    assert "No module named 'zmq'" in bare("import zmq").stderr
