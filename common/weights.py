"""Published weights on disk: one folder per version, a JSON manifest beside safetensors, every tensor digested.

```
weights/v000003/manifest.json        the WeightVersion
weights/v000003/weights.safetensors  its tensors
```

A version appears whole or not at all: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.config import ConfigError
from common.messages import TensorEntry, WeightVersion
from common.tensors import tensor_digest

MANIFEST, TENSORS = "manifest.json", "weights.safetensors"


class WeightStore:
    """The versions under `folder` (made when missing). One writer; any number of readers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def publish(
        self, state: Mapping[str, torch.Tensor], *, version: int, step: int, pushes: int, kind: str, base: int
    ) -> WeightVersion:
        """Write `state` as `version` and return its manifest.

        A version that was written but never announced (its writer died between the two) is replaced.
        """
        host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
        entries = tuple(tensor_entry(name, host[name]) for name in sorted(host))
        manifest = WeightVersion(version, step, pushes, kind, base, entries, whole_digest(entries))
        with new_folder(self._place(version)) as folder:
            save_file(host, folder / TENSORS)
            _write_manifest(folder, manifest)
        return manifest

    def receive(self, manifest: WeightVersion, chunks: Iterable[bytes]) -> None:
        """Take in a version that was published elsewhere: the bytes of its safetensors file, in order.

        `ConfigError` when what arrived is not what the manifest says; then the version is not here.
        """
        with new_folder(self._place(manifest.version)) as folder:
            with (folder / TENSORS).open("wb") as file:
                file.writelines(chunks)
            _write_manifest(folder, manifest)
            _verified(folder / TENSORS, manifest)

    def file(self, version: int) -> Path:
        """The safetensors file of a version that is here."""
        self.manifest(version)
        return self._place(version) / TENSORS

    def manifest(self, version: int) -> WeightVersion:
        """The manifest alone. `ConfigError` when the version is not here or its manifest is broken."""
        file = self._place(version) / MANIFEST
        try:
            data = json.loads(file.read_text())
            entries = tuple(TensorEntry(**(entry | {"shape": tuple(entry["shape"])})) for entry in data["tensors"])
            return WeightVersion(**(data | {"tensors": entries}))
        except FileNotFoundError:
            raise ConfigError(f"{self.folder}: no weight version {version}; here are {self.versions()}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: broken manifest: {error!r}") from None

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and tensors (on the CPU), every digest verified. `ConfigError` names the first wrong tensor."""
        manifest = self.manifest(version)
        return manifest, _verified(self._place(version) / TENSORS, manifest)

    def versions(self) -> list[int]:
        """The ids of the complete versions here, rising."""
        return sorted(int(path.parent.name[1:]) for path in self.folder.glob(f"v[0-9]*/{MANIFEST}"))

    def prune(self, keep: int, needed: Collection[int] = (0,)) -> None:
        """Delete all but the `keep` newest versions and those that are `needed`: by default 0, the base model."""
        for version in self.versions()[:-keep]:
            if version not in needed:
                shutil.rmtree(self._place(version))

    def _place(self, version: int) -> Path:
        return self.folder / f"v{version:06d}"


def _write_manifest(folder: Path, manifest: WeightVersion) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))


def _verified(file: Path, manifest: WeightVersion) -> dict[str, torch.Tensor]:
    """The tensors of a file, every digest compared. `ConfigError` names the first that differs."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if whole_digest(manifest.tensors) != manifest.digest:
        raise ConfigError(f"{file.parent / MANIFEST}: the manifest's entries differ from its own digest")
    listed = {entry.name for entry in manifest.tensors}
    for name in sorted(listed ^ state.keys()):
        raise ConfigError(f"{file}: {name} is {'missing' if name in listed else 'not in the manifest'}")
    for entry in manifest.tensors:
        if tensor_entry(entry.name, state[entry.name]) != entry:
            raise ConfigError(f"{file}: {entry.name} differs from its digest in the manifest")
    return state


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """``with new_folder(place) as folder``: fill `folder`; it becomes `place` on leaving, whole, or not at all.

    A leftover of an earlier death is cleared first, and a `place` that exists is replaced.
    """
    draft = draft_of(place)
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(parents=True)
    yield draft  # an error inside passes through here: the draft stays behind and is cleared by the next attempt
    for file in draft.iterdir():
        sync(file)
    if place.exists():
        shutil.rmtree(place)
    draft.rename(place)
    sync(place.parent)


def draft_of(place: Path) -> Path:
    """Where `new_folder` puts what will become `place`."""
    return place.with_name(f".{place.name}.draft")


def sync(path: Path) -> None:
    """Bring a file's (or a folder's) content to the disk before what follows."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tensor_entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    """The manifest's line about one tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    size = tensor.numel() * tensor.element_size()
    return TensorEntry(name, dtype, tuple(tensor.shape), size, tensor_digest(tensor))


def whole_digest(entries: tuple[TensorEntry, ...]) -> str:
    """blake2b-128 over the entries in name order, hex."""
    whole = blake2b(digest_size=16)
    for entry in sorted(entries, key=lambda entry: entry.name):
        whole.update(f"{entry.name}|{entry.dtype}|{entry.shape}|{entry.digest}\n".encode())
    return whole.hexdigest()
