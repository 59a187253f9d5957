"""What can be compared: bundles, ONNX files and TensorRT engines. They are recognised by their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from trtkp.bundle import Bundle, load
from trtkp.comparison.result import SourceKind
from trtkp.engine import Backend, Runner, backend_of_engine, cpu_backend, get_backend
from trtkp.engine.options import RunOptions
from trtkp.errors import InputError
from trtkp.files import open_regular, reading

__all__ = ["Subject", "open_subjects"]


@dataclass(frozen=True)
class Subject:
    """One engine to compare.

    Attributes:
        name: its path, as given.
        label: a short, unique name.
        kind: bundle, ONNX file or bare engine.
        file: the file that the backend opens.
        backend: the backend that runs it.
        bundle: the checked bundle; None for the other kinds.
    """

    name: str
    label: str
    kind: SourceKind
    file: Path
    backend: Backend
    bundle: Bundle | None = None

    def open(self, threads: int | None, device: int = 0) -> Runner:
        """Open the engine in a new runner, which the caller closes.

        Args:
            threads: CPU threads, for backends that compute on the CPU.
            device: number of the GPU, for those that compute on one.

        Raises:
            NotRunnableError: the engine cannot run on this machine.
        """
        options = RunOptions(device=device)
        if self.bundle is not None:
            return self.bundle.open(threads=threads, options=options)
        return self.backend.open(self.file, threads=threads, options=options)

    @property
    def graph(self) -> Path | None:
        """The ONNX graph from which the engine was built; None for a bare engine."""
        if self.bundle is not None:
            return self.bundle.file("engine.onnx")
        return self.file if self.kind == "onnx" else None

    @property
    def engine_bytes(self) -> int:
        """Size of the engine's files, including external data."""
        if self.bundle is None:
            return self.file.stat().st_size + sum(part.stat().st_size for part in _external_files(self.file, self.kind))
        files = self.bundle.manifest.files
        return sum(record.bytes for name, record in files.items() if name.startswith(self.file.name))


def open_subjects(items: Sequence[str | PathLike[str] | Bundle]) -> list[Subject]:
    """Recognise and check the engines to compare.

    Raises:
        InputError: there are fewer than two, one is given twice, a file is missing, or is none of the three kinds.
        IntegrityError: a bundle's file is missing or was changed.
    """
    if len(items) < 2:
        problem = "one engine alone cannot be compared" if items else "nothing to compare"
        raise InputError(problem, remedy="name two or more; the first is the baseline")
    paths = [item.path if isinstance(item, Bundle) else Path(item) for item in items]
    real = [path.resolve() for path in paths]
    for path, one in zip(paths, real, strict=True):
        if real.count(one) > 1:
            raise InputError("is given twice", file=path, remedy="compare it with another engine")
    return [_subject(item, path, label) for item, path, label in zip(items, paths, labels(paths), strict=True)]


def labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that are all different.

    Example:
        >>> labels([Path("nets/dense/v1"), Path("nets/kep/v1")])
        ['dense/v1', 'kep/v1']
    """
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        short = ["/".join(path.parts[-parts:]) or str(path) for path in paths]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def _subject(item: str | PathLike[str] | Bundle, path: Path, label: str) -> Subject:
    with reading(path):
        whole = isinstance(item, Bundle) or not path.is_file()
    if whole:
        bundle = item if isinstance(item, Bundle) else load(path)
        backend = get_backend(bundle.manifest.backend)
        return Subject(str(path), label, "bundle", bundle.file(backend.artefact), backend, bundle)
    with open_regular(path) as file:
        magic = file.read(4)
    compiled = backend_of_engine(magic)
    if compiled is not None:
        return Subject(str(path), label, "engine", path, compiled)
    if path.suffix in (".engine", ".plan", ".trt"):
        raise InputError("is not a TensorRT engine, or is incomplete", file=path, remedy="build it again")
    _check_onnx(path)
    return Subject(str(path), label, "onnx", path, cpu_backend())


def _check_onnx(path: Path) -> None:
    """Refuse files that ONNX Runtime must not open: broken ones, and those with weights outside the model's folder."""
    from trtkp.model.onnx_file import read_onnx

    with path.open("rb") as handle:
        read_onnx(handle, path)


def _external_files(path: Path, kind: SourceKind) -> list[Path]:
    if kind != "onnx":
        return []
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = {e.value for tensor in graph.initializer for e in tensor.external_data if e.key == "location"}
    return [path.parent / name for name in sorted(names)]
