"""Hub ids: found in the local cache, by revision too, and never downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import _snapshot_download
from transformers import CLIPModel

from common.errors import ConfigError
from common.models.fingerprint import cached_snapshot, is_hub_id, model_folder
from common.models.pretrained import from_pretrained

OLD, NEW = "0" * 40, "1" * 40  # commits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as `hf download` leaves it: two commits; refs for a tag and, of the newer one, main."""
    place = tmp_path / "hub" / "models--THUDM--tiny"
    for commit, ref in ((OLD, "v1.0"), (NEW, "main")):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / ref).write_text(commit)
    monkeypatch.setattr(_snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return place


def test_a_hub_id_is_its_snapshot(cache: Path) -> None:
    assert model_folder("THUDM/tiny") == cache / "snapshots" / NEW
    assert model_folder("THUDM/tiny@v1.0") == cache / "snapshots" / OLD
    assert model_folder(f"THUDM/tiny@{OLD}") == cache / "snapshots" / OLD


def test_what_is_not_in_the_cache_is_not_downloaded(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"get one with: hf download THUDM/other; allowed"):
        model_folder("THUDM/other")
    with pytest.raises(ConfigError, match=r"get one with: hf download THUDM/tiny --revision v2; allowed"):
        model_folder("THUDM/tiny@v2")
    (cache / "refs" / "main").unlink()
    assert cached_snapshot("THUDM/tiny") is None


@pytest.mark.parametrize("path", ["a/b/c", "/a/b", "./a", "a b/c", "a/b@", "https://huggingface.co/a/b", "toon"])
def test_other_texts_are_no_hub_ids(path: str) -> None:
    assert not is_hub_id(path)


@pytest.mark.parametrize("place", ["no-one/no-such-model", "models/gone", "/models/gone"])
def test_a_model_that_is_nowhere_is_said_before_a_library_asks_again_and_again(place: str) -> None:
    with pytest.raises(ConfigError, match=f"^path = {place}: no such folder, and not on the hub: "):
        from_pretrained(CLIPModel, place, f"path = {place}")
