"""Published weights on disk: one folder per version, with a safetensors file and a manifest of tensor digests.

```
weights/v000003/manifest.json        the WeightVersion
weights/v000003/weights.safetensors  its tensors
```

A version is published atomically: it is written to a draft folder, which is then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import ConfigError, CorruptDataError, NotFoundError
from common.files import new_folder
from common.messages import TensorEntry, WeightVersion
from common.weights.tensor_file import Checker, TensorStream, write
from common.weights.tensors import tensor_entry, whole_digest

MANIFEST, TENSORS = "manifest.json", "weights.safetensors"


class WeightStore:
    """The versions under `folder`, which is created if missing. One writer; any number of readers.

    A reader of a folder that may be deleted at any time sets `create` to False.
    """

    def __init__(self, folder: Path, create: bool = True) -> None:
        self.folder = folder
        if create:
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
        """Write `stream` tensor by tensor as `version`, and return its manifest.

        An existing version is replaced: its writer crashed before it could announce it.
        """
        with new_folder(self._place(version)) as folder:
            entries = write(folder / TENSORS, stream)
            digest = whole_digest(entries)
            manifest = WeightVersion(version, step, pushes, kind, base, entries, digest, dict(model or {}))
            _write_manifest(folder, manifest)
        return manifest

    def receive(self, manifest: WeightVersion, chunks: Iterable[bytes | memoryview]) -> None:
        """Store a version that was published elsewhere, from the bytes of its safetensors file in order.

        The bytes are checked as they arrive. They are not fsynced: after a power cut the version is downloaded again.

        Raises:
            CorruptDataError: the bytes differ from the manifest. Nothing of the version is kept.
        """
        check = manifest_checker(manifest)
        with new_folder(self._place(manifest.version), durable=False) as folder:
            with (folder / TENSORS).open("wb") as file:
                for chunk in chunks:
                    check.feed(chunk)
                    file.write(chunk)
            check.close()
            _write_manifest(folder, manifest)

    def link(self, manifest: WeightVersion, file: Path, size: int) -> None:
        """Store a version whose verified safetensors file of `size` bytes is on the same disk already, as a hard link.

        Raises `OSError`, or `StorageError`, if that is impossible or the file has another size.
        """
        with new_folder(self._place(manifest.version), durable=False) as folder:
            os.link(file, folder / TENSORS, follow_symlinks=False)
            if (folder / TENSORS).stat().st_size != size:
                raise OSError(f"{file}: not of {size} bytes")
            _write_manifest(folder, manifest)

    def file(self, version: int) -> Path:
        """The safetensors file of a stored version."""
        return self._place(version) / TENSORS

    def manifest(self, version: int) -> WeightVersion:
        """The manifest alone. Raises `NotFoundError` for an unknown version, `CorruptDataError` for a broken one."""
        file = self._place(version) / MANIFEST
        try:
            data = json.loads(file.read_text("utf-8"))
            entries = tuple(TensorEntry(**(entry | {"shape": tuple(entry["shape"])})) for entry in data["tensors"])
            return WeightVersion(**(data | {"tensors": entries}))
        except FileNotFoundError:
            raise NotFoundError(f"{self.folder}: no weight version {version}; there are {self.versions()}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{file}: broken manifest: {error!r}") from None

    def name_in_sets(self, version: int, digest: str, base: str) -> str:
        """The digest that names a run's weights in candidate sets: `digest` of the version, or `base`.

        `base` is the fingerprint of the base model. Several versions may have its weights: 0, and those of starts that
        were interrupted before the first push.
        """
        return base if version == 0 or digest == self.manifest(0).digest else digest

    def load(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Manifest and CPU tensors, with every digest verified. `CorruptDataError` names the first wrong tensor."""
        manifest, state = self.open(version)
        _verify(self._place(version) / TENSORS, state, manifest)
        return manifest, state

    def open(self, version: int) -> tuple[WeightVersion, dict[str, torch.Tensor]]:
        """Like `load`, but without verification, so it returns at once. `receive` has already verified the version.

        The tensors are views of the memory-mapped file. They stay valid when the version is deleted.
        """
        file = self._place(version) / TENSORS
        try:
            return self.manifest(version), load_file(file)
        except (OSError, SafetensorError) as error:
            raise CorruptDataError(f"{file}: cannot be read: {error}") from None

    def versions(self) -> list[int]:
        """The ids of all complete versions, in ascending order."""
        return sorted(int(path.parent.name[1:]) for path in self.folder.glob(f"v[0-9]*/{MANIFEST}"))

    def prune(self, keep: int, needed: Collection[int] = (0,)) -> None:
        """Delete all versions except the `keep` newest and those in `needed` (default: 0, the base model)."""
        for version in self.versions()[:-keep]:
            if version not in needed:
                shutil.rmtree(self._place(version))

    def _place(self, version: int) -> Path:
        return self.folder / f"v{version:06d}"


def _write_manifest(folder: Path, manifest: WeightVersion) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")


def manifest_checker(manifest: WeightVersion) -> Checker:
    """A checker for the bytes of a version's file. Raises `CorruptDataError` if the manifest fails its own digest."""
    where = f"weight version {manifest.version}"
    if whole_digest(manifest.tensors) != manifest.digest:
        raise CorruptDataError(f"{where}: the manifest's entries differ from its own digest")
    return Checker(manifest.tensors, where)


def _verify(file: Path, state: Mapping[str, torch.Tensor], manifest: WeightVersion) -> None:
    """Verify every digest. `CorruptDataError` names the first tensor that differs."""
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
    """Check that a version can be loaded into a model.

    Every tensor in `state` must be one of the model's `own` tensors, with the same dtype and shape, and `state` must
    hold all names in `needed`.

    Raises:
        ConfigError: names the first tensor that does not fit.
    """
    for name in sorted(set(needed) - state.keys()):
        raise ConfigError(f"weight version {version.version}: {name} is missing; another architecture?")
    if {entry.name for entry in version.tensors} != state.keys():
        raise ConfigError(f"weight version {version.version}: its tensors are not the ones in its manifest")
    for name, tensor in sorted(state.items()):
        mine = own.get(name)
        if mine is None or (mine.shape, mine.dtype) != (tensor.shape, tensor.dtype):
            here = "no such tensor" if mine is None else f"{mine.dtype}{list(mine.shape)}"
            raise ConfigError(
                f"weight version {version.version}: {name} is {tensor.dtype}{list(tensor.shape)}, "
                f"the model has {here}; another architecture?"
            )
