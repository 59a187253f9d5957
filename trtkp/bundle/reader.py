"""Open a bundle: nothing in it is read before its hash was checked. That is integrity, not authenticity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from trtkp.bundle.manifest import HASH_LINE, MANIFEST, MANIFEST_HASH, FileRecord, Manifest, hash_line
from trtkp.bundle.writer import hash_file
from trtkp.errors import InputError, IntegrityError
from trtkp.machine.processes import Closing

if TYPE_CHECKING:
    import numpy as np

    from trtkp.engine.base import Runner
    from trtkp.index.index_set import IndexSet

__all__ = ["Bundle", "check_files", "load", "read_record"]

Record = TypeVar("Record", bound=BaseModel)

_AGAIN = "build the bundle again"


def load(path: str | PathLike[str]) -> Bundle:
    """Open a bundle and check every file against the manifest.

    Args:
        path: the bundle's directory.

    Returns:
        The bundle. Its engine is opened at the first `Bundle.run`, and closed by `Bundle.close` or at the end of
        ``with``.

    Raises:
        InputError: the directory holds no bundle, or one of another format version.
        IntegrityError: a file is missing, was changed, or has another size.

    Example:
        >>> import numpy as np
        >>> import trtkp
        >>> with trtkp.load("kep") as bundle:
        ...     outputs = bundle.run({"image": np.zeros((2, 3, 8, 8), np.float32)})
        >>> {name: value.shape for name, value in outputs.items()}
        {'y': (2, 5)}
    """
    path = Path(path)
    manifest = read_record(path, Manifest)
    check_files(path, manifest.files)
    return Bundle(path, manifest)


def check_files(path: Path, files: Mapping[str, FileRecord]) -> None:
    """Hold the files of a directory against their records.

    Raises:
        IntegrityError: a file is missing, was changed, or is of another size.
    """
    for name, record in files.items():
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise IntegrityError("is missing from the bundle", file=file, remedy=_AGAIN)
        if file.stat().st_size != record.bytes:
            message = f"has {file.stat().st_size} bytes, the manifest says {record.bytes}"
            raise IntegrityError(message, file=file, remedy=_AGAIN)
        if hash_file(file) != record.sha256:
            raise IntegrityError("was changed since it was built (its SHA-256 differs)", file=file, remedy=_AGAIN)


class Bundle(Closing):
    """A bundle whose files were checked. ``run`` opens the engine at its first call; `close` gives it back.

    Attributes:
        path: its directory.
        manifest: what it says of itself.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._runner: Runner | None = None

    def file(self, name: str) -> Path:
        """A file of the bundle.

        Raises:
            InputError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise InputError(f"holds no {name}", file=self.path)
        return self.path / name

    @cached_property
    def index_sets(self) -> dict[str, IndexSet]:
        """Index sets by parameter name."""
        from trtkp.index.storage import load_index_sets

        return load_index_sets(self.file("index_sets.safetensors"))

    @cached_property
    def samples(self) -> np.ndarray[Any, Any] | None:
        """A few inputs [N, ...] that an int8 or fp8 bundle was calibrated with; None where it keeps none."""
        from safetensors.numpy import load_file

        name = "samples.safetensors"
        return load_file(self.file(name))["inputs"] if name in self.manifest.files else None

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """One inference on the bundle's backend.

        Raises:
            InputError: wrong names, shapes or dtypes.
            JobError: the engine cannot run here, or failed.
        """
        if self._runner is None:
            self._runner = self.open()
        return self._runner.run(feeds)

    def open(self, *, threads: int | None = None, **options: Any) -> Runner:
        """A new runner of the bundle's engine.

        Args:
            threads: CPU threads, where the engine runs there.
            options: of the backend's own ``open``, such as ``options=RunOptions(graphs=True)`` of TensorRT.

        Raises:
            NotRunnableError: it cannot run on this machine.
            InputError: its plugins are of another build than the library that is installed.
        """
        from trtkp.engine import NotRunnableError, get_backend
        from trtkp.kernels.capi import find_library
        from trtkp.machine.gpu import why_not_built_for_here

        backend, record = get_backend(self.manifest.backend), self.manifest.tensorrt
        if (reason := why_not_built_for_here(self.manifest.targets)) is not None:
            raise NotRunnableError(f"the engine does not run here: {reason}", file=self.path)
        if record is not None and record.plugin_layers and not record.embed_plugins:
            library = None
            with suppress(InputError):  # without one, TensorRT says which plugin it misses
                library = find_library()
            if library is not None:
                self.check_plugin_library(library)
        if record is not None and record.strip_weights:
            from trtkp.engine.options import RunOptions

            given = options.get("options") or RunOptions()
            options["options"] = replace(given, refit_from=given.refit_from or self.file("engine.onnx"))
        return backend.open(self.file(backend.artefact), threads=threads, **options)

    def check_plugin_library(self, library: Path) -> None:
        """Hold a plugin library against the one that the engine was made with.

        An engine names tactics by their numbers, which mean something to one build of the library.

        Raises:
            InputError: it is another build.
        """
        record = self.manifest.tensorrt
        if record is not None and hash_file(library) != record.plugin_library:
            raise InputError(
                f"its engine was made with another build of the plugins than {library}", file=self.path,
                remedy="build the bundle again, or name its library with TRTKP_LIBRARY",
            )  # fmt: skip

    def close(self) -> None:
        """Close the engine that `run` opened."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def read_record(path: Path, kind: type[Record]) -> Record:
    """The manifest of a directory, of the wanted kind, after its hash was checked.

    Raises:
        InputError: there is none, or one of another kind or version.
        IntegrityError: it was changed.
    """
    if not path.exists():
        raise InputError("no such bundle", file=path, remedy="write one with trtkp build -o")
    file, hash_of_it = path / MANIFEST, path / MANIFEST_HASH
    present = [part.is_file() and not part.is_symlink() for part in (file, hash_of_it)]
    if not any(present):
        raise InputError(f"is not a bundle: it holds no {MANIFEST}", file=path, remedy="write one with trtkp build -o")
    for part, there in zip((file, hash_of_it), present, strict=True):
        if not there:
            raise IntegrityError("is missing from the bundle", file=part, remedy=_AGAIN)
    try:
        text, stated = file.read_bytes(), hash_of_it.read_bytes()
    except OSError as error:
        raise IntegrityError(f"cannot be read ({error.strerror})", file=error.filename, remedy=_AGAIN) from None
    if not re.fullmatch(HASH_LINE, stated):
        raise IntegrityError("was changed since it was built (not a SHA-256)", file=hash_of_it, remedy=_AGAIN)
    if stated != hash_line(text):
        raise IntegrityError(
            f"was changed since it was built (it does not match {MANIFEST_HASH})", file=file, remedy=_AGAIN
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] in (("version",), ("format",)):
            message = (
                f"{'.'.join(map(str, first['loc']))} is {first['input']}, this trtkp reads "
                f"{kind.model_fields['format'].default} version {kind.model_fields['version'].default}"
            )
        else:
            message = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise InputError(message, file=file, remedy=_AGAIN) from None
