"""On a bare GPU machine there is no Ray, ZeroMQ or DeepSpeed: the benchmarks of models do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BARE = """
import sys

MISSING = {"ray", "zmq", "deepspeed", "decord", "arcade", "prometheus_client", "jinja2", "scipy", "sentencepiece"}

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
assert not MISSING & {name.partition(".")[0] for name in sys.modules}
"""
IMPORTS = "import benchmarks.sampling, benchmarks.learning, benchmarks.iteration\n"
SAMPLES = """
from actors.sampler import Sampler
from benchmarks import sampling
from benchmarks.setting import Pictures
from common.config import load_config
from tests.benchmarks.small import small_model

model, config = small_model("5b-i2v"), load_config(flags={"sampler.steps": 1, "sampler.candidates": 2})
prompt = Pictures(True)(0)
print(len(sampling.ours(Sampler(model, config), prompt, [1, 2])))
print(len(sampling.plain(sampling.open_pipeline(model, config), config, prompt, [1, 2])))
"""


def bare(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def test_the_benchmarks_import_and_sample_without_what_a_bare_machine_lacks() -> None:
    ran = bare(IMPORTS + SAMPLES)
    assert ran.stdout.split() == ["2", "2"], ran.stderr


def test_what_is_missing_is_missing() -> None:
    assert "No module named 'zmq'" in bare("import zmq").stderr
