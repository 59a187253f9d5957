"""Open a bundle. No file is parsed before its hash was checked against the manifest.

The hashes protect against damage and mix-ups (integrity). They do not tell who made the bundle (authenticity): whoever
can change a file can change the manifest too.
"""

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
from trtkp.files import check_name, read_file, reading
from trtkp.machine.processes import Closing

if TYPE_CHECKING:
    import numpy as np

    from trtkp.engine.base import Runner
    from trtkp.engine.options import RunOptions
    from trtkp.index.index_set import IndexSet

__all__ = ["Bundle", "check_files", "load", "read_record"]

Record = TypeVar("Record", bound=BaseModel)

_AGAIN = "build the bundle again"


def load(path: str | PathLike[str], *, digest: str | None = None) -> Bundle:
    """Open a bundle and check every file against the manifest.

    Args:
        path: the bundle's directory.
        digest: the `Bundle.digest` that it must have; None for any bundle.

    Returns:
        The bundle. Its engine is opened at the first `Bundle.run`, and closed by `Bundle.close` or at the end of
        ``with``.

    Raises:
        InputError: the directory holds no bundle, or one of another format version.
        IntegrityError: a file is missing, was changed, or has another size, or the bundle has another digest.

    Example:
        >>> import numpy as np
        >>> import trtkp
        >>> with trtkp.load("kep") as bundle:
        ...     outputs = bundle.run({"image": np.zeros((2, 3, 8, 8), np.float32)})
        >>> {name: value.shape for name, value in outputs.items()}
        {'y': (2, 5)}
    """
    path = Path(path)
    manifest, found = read_record(path, Manifest)
    if digest is not None and found != digest:
        raise IntegrityError(
            f"holds another bundle than the one that was loaded here ({found[:12]}, not {digest[:12]})", file=path
        )
    check_files(path, manifest.files)
    return Bundle(path, manifest, found)


def check_files(path: Path, files: Mapping[str, FileRecord]) -> None:
    """Check the files of a directory against their records.

    Raises:
        IntegrityError: a file is missing, was changed, or has another size.
    """
    for name, record in files.items():
        with reading(path / name):
            _check_file(path / name, record)


def _check_file(file: Path, record: FileRecord) -> None:
    # A link could lead to a file outside of the bundle.
    if not file.is_file() or file.is_symlink():
        raise IntegrityError("is missing from the bundle", file=file, remedy=_AGAIN)
    # The size is compared first: it costs nothing, and a truncated copy is the most common damage.
    if file.stat().st_size != record.bytes:
        message = f"has {file.stat().st_size} bytes, but the manifest says {record.bytes}"
        raise IntegrityError(message, file=file, remedy=_AGAIN)
    if hash_file(file) != record.sha256:
        raise IntegrityError("was changed since it was built (its SHA-256 differs)", file=file, remedy=_AGAIN)


class Bundle(Closing):
    """A bundle whose files were checked.

    `run` opens the engine at its first call and keeps it; `close`, or leaving the ``with`` block, closes it.

    Attributes:
        path: the bundle's directory.
        manifest: the parsed manifest.
        digest: SHA-256 of the manifest. It holds the hashes of all other files, so bundles of one digest are equal.
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest
        self._runner: Runner | None = None

    def file(self, name: str) -> Path:
        """Path of a file of the bundle.

        Raises:
            InputError: the manifest does not list the file.
        """
        if name not in self.manifest.files:
            raise InputError(f"the bundle holds no {name}", file=self.path)
        return self.path / name

    @cached_property
    def index_sets(self) -> dict[str, IndexSet]:
        """The index sets by parameter name; read from disk at the first access."""
        from trtkp.index.storage import load_index_sets

        return load_index_sets(self.file("index_sets.safetensors"))

    @cached_property
    def samples(self) -> np.ndarray[Any, Any] | None:
        """A few of the inputs [N, ...] used to calibrate an int8 or fp8 bundle; None where the bundle keeps none."""
        from safetensors.numpy import load_file

        name = "samples.safetensors"
        return load_file(self.file(name))["inputs"] if name in self.manifest.files else None

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run one inference on the bundle's backend.

        Args:
            feeds: an array for every input, by name; shapes and dtypes as in ``manifest.inputs``.

        Returns:
            An array for every output, by name.

        Raises:
            InputError: an input has the wrong name, shape or dtype.
            JobError: the engine cannot run on this machine, or failed.
        """
        if self._runner is None:
            self._runner = self.open()
        return self._runner.run(feeds)

    def open(self, *, threads: int | None = None, options: RunOptions | None = None) -> Runner:
        """Open the bundle's engine in a new runner, which the caller closes.

        Args:
            threads: CPU threads, for backends that compute on the CPU.
            options: contexts, CUDA graphs, host code, refitting and the GPU, for TensorRT and TensorRT-RTX.

        Raises:
            NotRunnableError: the engine cannot run on this machine.
            InputError: the engine was built with another plugin library than the one installed here, or it takes back
                no weights but those that were stripped from it.
        """
        from trtkp.engine import NotRunnableError, get_backend
        from trtkp.engine.options import RunOptions
        from trtkp.kernels.capi import find_library
        from trtkp.machine.gpu import why_not_built_for_here

        backend, record = get_backend(self.manifest.backend), self.manifest.tensorrt
        options = options or RunOptions()
        if (reason := why_not_built_for_here(self.manifest.targets, options.device)) is not None:
            raise NotRunnableError(f"the engine does not run here: {reason}", file=self.path)
        if record is not None and record.plugin_layers and not record.embed_plugins:
            library = None
            with suppress(InputError):  # if there is none, TensorRT's own error names the plugin that is missing
                library = find_library()
            if library is not None:
                self.check_plugin_library(library)
        if record is not None and record.strip_weights:
            if options.refit_from is not None and not record.refit and not self._is_own(options.refit_from):
                raise InputError(
                    f"the engine takes no other weights than its own, and {options.refit_from} is not its engine.onnx",
                    file=self.path,
                    remedy="build with --strip-weights --refit",
                )
            options = replace(options, refit_from=options.refit_from or self.file("engine.onnx"))
        return backend.open(self.file(backend.artefact), threads=threads, options=options)

    def _is_own(self, onnx: Path) -> bool:
        """Whether a file is this bundle's ``engine.onnx``. One that is not there is left to TensorRT to refuse."""
        return not onnx.is_file() or hash_file(onnx) == self.manifest.files["engine.onnx"].sha256

    def check_plugin_library(self, library: Path) -> None:
        """Check that a plugin library is the one the engine was built with.

        An engine stores its kernels' tactics as numbers, and another build of the library may number them differently:
        the engine would then run another kernel than the one that was timed.

        Raises:
            InputError: the library is another build.
        """
        record = self.manifest.tensorrt
        if record is not None and hash_file(library) != record.plugin_library:
            raise InputError(
                f"the engine was built with another build of the plugin library than {library}", file=self.path,
                remedy="build the bundle again, or name its library with TRTKP_LIBRARY",
            )  # fmt: skip

    def close(self) -> None:
        """Close the engine that `run` opened; may be called twice."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def read_record(path: Path, kind: type[Record]) -> tuple[Record, str]:
    """Check the hash of a directory's manifest, then parse it. Returns the manifest and its SHA-256.

    Args:
        path: the directory.
        kind: the schema to parse it with: `Manifest`, or that of a pruned model.

    Raises:
        InputError: there is no manifest, or one of another format or version.
        IntegrityError: the manifest was changed.
    """
    check_name(path)
    with reading(path, "bundle"):
        exists = path.exists()
    if not exists:
        raise InputError("no such bundle", file=path, remedy="write one with trtkp build -o")
    file, hash_of_it = path / MANIFEST, path / MANIFEST_HASH
    with reading(path, "bundle"):
        present = [part.is_file() and not part.is_symlink() for part in (file, hash_of_it)]
    if not any(present):
        raise InputError(f"is not a bundle: it holds no {MANIFEST}", file=path, remedy="write one with trtkp build -o")
    for part, there in zip((file, hash_of_it), present, strict=True):
        if not there:
            raise IntegrityError("is missing from the bundle", file=part, remedy=_AGAIN)
    text, stated = (read_file(part) for part in (file, hash_of_it))
    # The hash comes before the JSON: a damaged manifest must be reported as damaged, not as one with a wrong value.
    if not re.fullmatch(HASH_LINE, stated):
        raise IntegrityError("was changed since it was built (not a SHA-256)", file=hash_of_it, remedy=_AGAIN)
    if stated != hash_line(text):
        raise IntegrityError(
            f"was changed since it was built (it does not match {MANIFEST_HASH})", file=file, remedy=_AGAIN
        )
    try:
        return kind.model_validate_json(text), stated[:64].decode()
    except ValidationError as error:
        first = error.errors()[0]  # one line of output: the first problem is enough to act on
        if first["loc"] in (("version",), ("format",)):
            message = (
                f"{'.'.join(map(str, first['loc']))} is {str(first['input'])[:80]}, this trtkp reads "
                f"{kind.model_fields['format'].default} version {kind.model_fields['version'].default}"
            )
        else:
            words = first["msg"].removeprefix("Value error, ")  # pydantic's, before what a check of ours says
            message = ": ".join(filter(None, [".".join(map(str, first["loc"])), words]))
        raise InputError(message, file=file, remedy=_AGAIN) from None
