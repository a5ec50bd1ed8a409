"""Published weights on disk: one folder per version, a JSON manifest beside safetensors, every tensor digested.

```
weights/v000003/manifest.json        the WeightVersion
weights/v000003/weights.safetensors  its tensors
```

A version appears whole or not at all: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import ConfigError, CorruptDataError, NotFoundError
from common.errors.disk import sync, writing
from common.messages import TensorEntry, WeightVersion
from common.weights.tensor_file import Checker, TensorStream, write
from common.weights.tensors import tensor_entry, whole_digest

MANIFEST, TENSORS = "manifest.json", "weights.safetensors"


class WeightStore:
    """The versions under `folder` (made when missing). One writer; any number of readers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def publish(
        self,
        stream: TensorStream,
        *,
        version: int,
        step: int,
        pushes: int,
        kind: str,
        base: int,
        model: Mapping[str, str] | None = None,
    ) -> WeightVersion:
        """Write `stream`, tensor by tensor, as `version` and return its manifest.

        A version that was written but never announced (its writer died between the two) is replaced.
        """
        with new_folder(self._place(version)) as folder:
            entries = write(folder / TENSORS, stream)
            digest = whole_digest(entries)
            manifest = WeightVersion(version, step, pushes, kind, base, entries, digest, dict(model or {}))
            _write_manifest(folder, manifest)
        return manifest

    def receive(self, manifest: WeightVersion, chunks: Iterable[bytes | memoryview]) -> None:
        """Take in a version that was published elsewhere: the bytes of its safetensors file, in order.

        They are checked as they pass, and not brought to the disk for good: who loses them asks again.
        `CorruptDataError` when what arrives is not what the manifest says; then nothing of the version is here.
        """
        check = manifest_checker(manifest)
        with new_folder(self._place(manifest.version), durable=False) as folder:
            with (folder / TENSORS).open("wb") as file:
                for chunk in chunks:
                    check.feed(chunk)
                    file.write(chunk)
            check.close()
            _write_manifest(folder, manifest)

    def file(self, version: int) -> Path:
        """The safetensors file of a version that is here."""
        return self._place(version) / TENSORS

    def manifest(self, version: int) -> WeightVersion:
        """The manifest alone. `NotFoundError` when the version is not here, `CorruptDataError` when it is broken."""
        file = self._place(version) / MANIFEST
        try:
            data = json.loads(file.read_text())
            entries = tuple(TensorEntry(**(entry | {"shape": tuple(entry["shape"])})) for entry in data["tensors"])
            return WeightVersion(**(data | {"tensors": entries}))
        except FileNotFoundError:
            raise NotFoundError(f"{self.folder}: no weight version {version}; here are {self.versions()}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{file}: broken manifest: {error!r}") from None

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and tensors (on the CPU), every digest verified. `CorruptDataError` names the first wrong tensor."""
        manifest, state = self.open(version)
        _verify(self._place(version) / TENSORS, state, manifest)
        return manifest, state

    def open(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Like `load` at once: for who has `receive`d the version, which has verified it.

        The tensors are views of the file, mapped into memory; deleting the version does not touch them.
        """
        file = self._place(version) / TENSORS
        try:
            return self.manifest(version), load_file(file)
        except (OSError, SafetensorError) as error:
            raise CorruptDataError(f"{file}: cannot be read: {error}") from None

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


def manifest_checker(manifest: WeightVersion) -> Checker:
    """What compares a version's file with its manifest. `CorruptDataError` when the manifest contradicts itself."""
    where = f"weight version {manifest.version}"
    if whole_digest(manifest.tensors) != manifest.digest:
        raise CorruptDataError(f"{where}: the manifest's entries differ from its own digest")
    return Checker(manifest.tensors, where)


def _verify(file: Path, state: Mapping[str, torch.Tensor], manifest: WeightVersion) -> None:
    """Compare every digest. `CorruptDataError` names the first that differs."""
    if whole_digest(manifest.tensors) != manifest.digest:
        raise CorruptDataError(f"{file.parent / MANIFEST}: the manifest's entries differ from its own digest")
    listed = {entry.name for entry in manifest.tensors}
    for name in sorted(listed ^ state.keys()):
        raise CorruptDataError(f"{file}: {name} is {'missing' if name in listed else 'not in the manifest'}")
    for entry in manifest.tensors:
        if tensor_entry(entry.name, state[entry.name]) != entry:
            raise CorruptDataError(f"{file}: {entry.name} differs from its digest in the manifest")


def check_fits(
    version: WeightVersion, state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], needed: Collection[str]
) -> None:
    """Compare names, dtypes and shapes of a published version with those of the model's `own` tensors, of which it must
    have all that are `needed`. `ConfigError` names the first that is wrong."""
    for name in sorted(set(needed) - state.keys()):
        raise ConfigError(f"weight version {version.version}: {name} is missing; another architecture?")
    if {entry.name for entry in version.tensors} != state.keys():
        raise ConfigError(f"weight version {version.version}: its tensors are not those of its manifest")
    for name, tensor in sorted(state.items()):
        mine = own.get(name)
        if mine is None or (mine.shape, mine.dtype) != (tensor.shape, tensor.dtype):
            here = "no such tensor" if mine is None else f"{mine.dtype}{list(mine.shape)}"
            raise ConfigError(
                f"weight version {version.version}: {name} is {tensor.dtype}{list(tensor.shape)}, "
                f"the model has {here}; another architecture?"
            )


@contextmanager
def new_folder(place: Path, durable: bool = True) -> Iterator[Path]:
    """``with new_folder(place) as folder``: fill `folder`; it becomes `place` on leaving, whole, or not at all.

    A leftover of an earlier death is cleared first, a `place` that exists is replaced, and after an error nothing is
    left; where the disk refused, the error is a `StorageError`. What is not `durable` is not written through to the
    disk: it may be gone after a power cut, or empty.
    """
    draft = draft_of(place)
    try:
        with writing(place):
            if draft.exists():
                shutil.rmtree(draft)
            draft.mkdir(parents=True)
            yield draft
            for file in draft.iterdir() if durable else ():
                sync(file)
            if place.exists():
                shutil.rmtree(place)
            draft.rename(place)
            if durable:
                sync(place.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def draft_of(place: Path) -> Path:
    """Where `new_folder` puts what will become `place`."""
    return place.with_name(f".{place.name}.draft")
