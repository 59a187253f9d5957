"""``trtkp verify``: check every artefact of a bundle against a reference.

Each check is *verified*, *failed* or *not run*, with a reason. Together they lead from the source model to the engine:

- The dense masked net, unpacked with NumPy from ``model.onnx``, is compared with the source model whose pruned weights
  are set to zero.
- ``model.onnx`` (packed operators, computed by their function bodies) and ``engine.onnx`` are compared with the dense
  masked net.
- The engine is compared with the dense masked net where it can run. A compiled engine is also compared, by Polygraphy,
  with the graph from which it was built (`outputs`).
- In fp16, the activations are checked against the range of float16, because ONNX Runtime's CPU kernels compute fp16
  graphs in fp32 and would not overflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from trtkp.bundle import Bundle, load
from trtkp.engine.feeds import random_feeds
from trtkp.engine.options import DeviceNumber, RunOptions
from trtkp.errors import InputError, JobError, TrtkpError
from trtkp.machine.gpu import check_gpu, why_not_built_for_here
from trtkp.model.options import Arch, TrustPickle
from trtkp.settings import Setting, check_values

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtkp.bundle.calibration import Calibration
    from trtkp.engine.base import Backend, BuildRequest, BuildResult, Runner
    from trtkp.model import SourceModel
    from trtkp.shapes import Shape

__all__ = [
    "TOLERANCE",
    "Check",
    "VerificationReport",
    "check_built",
    "compare_graphs",
    "dense_graph",
    "inputs_in_range",
    "verify",
]

#: Largest relative Frobenius error of a whole net's outputs. The limits for 8 bits are loose on purpose: they tell a
#: wrong graph (a wrong scale, a misplaced Q/DQ pair) from rounding. They say nothing about accuracy, which the build
#: measures.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.5, "fp8": 0.5}

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Status: TypeAlias = Literal["verified", "failed", "not run"]


@dataclass(frozen=True)
class OutputError:
    """Errors of one output: the largest absolute error, and ``||a - b|| / ||b||`` over all elements."""

    max_abs: float
    relative: float


@dataclass(frozen=True)
class Check:
    """The comparison of one artefact with one reference.

    Attributes:
        artefact: what was checked, such as ``model.onnx`` or ``engine``.
        against: the reference.
        status: ``verified``, ``failed`` or ``not run``.
        reason: why the check failed or was not run; None where the errors tell.
        tolerance: largest relative error allowed.
        outputs: errors by output name, the worst over all runs.
    """

    artefact: str
    against: str
    status: Status
    reason: str | None = None
    tolerance: float | None = None
    outputs: dict[str, OutputError] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        """The tolerance as text."""
        tolerance = self.tolerance or 0.0
        short = f"{tolerance:.0e}"
        return short if float(short) == tolerance else f"{tolerance:g}"

    @property
    def summary(self) -> str:
        """The result in one line."""
        if self.reason is not None:
            return f"{self.artefact}: {self.status} ({self.reason})"
        if not self.outputs:
            return f"{self.artefact}: {self.status} against the {self.against}"
        worst = max(self.outputs.items(), key=lambda item: _order(item[1].relative))
        return (
            f"{self.artefact}: {self.status} against {self.against}, output {worst[0]}: relative error "
            f"{worst[1].relative:.2e} (limit {self.limit}), largest difference {worst[1].max_abs:.2e}"
        )


@dataclass(frozen=True)
class VerificationReport:
    """All checks of a bundle.

    Attributes:
        bundle: the bundle's directory.
        precision: its precision.
        checks: the checks in the order of the build, the source model first.
        require_engine: whether an engine that was not run is a failure.
    """

    bundle: str
    precision: str
    checks: tuple[Check, ...]
    require_engine: bool
    scores: dict[str, Any] | None = None
    """For a quantised bundle: the scores its build measured on real data (`trtkp.bundle.calibration.Scores`)."""

    @property
    def ok(self) -> bool:
        """Whether no check failed and, if ``require_engine``, the engine was verified."""
        failed = any(check.status == "failed" for check in self.checks)
        engine_missing = self.require_engine and any(
            check.artefact == "engine" and check.status != "verified" for check in self.checks
        )
        return not failed and not engine_missing

    @property
    def hint(self) -> str | None:
        """What a failure probably means, where the pattern of the checks shows it; None otherwise."""
        source, *others = self.checks
        rounding = (
            self.precision == "fp16"
            and source.status == "failed"
            and all(error.relative < 1 for error in source.outputs.values())
            and bool(source.outputs)
            and all(check.status != "failed" for check in others)
        )
        if not rounding:
            return None
        worst = max(error.relative for error in source.outputs.values())
        return (
            "the graphs agree with each other, and only the source model in fp32 differs: the cause is rounding to "
            f"fp16; build with --precision fp32, or accept the error with --tolerance {_round_up(worst):g}"
        )


def verify(
    bundle: str | PathLike[str] | Bundle,
    *,
    model: Annotated[
        str | PathLike[str] | None, Setting("The source model, where it is no longer at its old place.")
    ] = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    tolerance: Annotated[
        float | None,
        Setting("Relative Frobenius error allowed.", gt=0, default="1e-5, fp16 5e-3, int8 and fp8 0.5"),
    ] = None,
    require_engine: Annotated[bool, Setting("Count an engine that cannot run here as a failure.")] = False,
    seed: Annotated[int, Setting("Seed of the random inputs.", ge=0)] = 0,
    device: DeviceNumber = 0,
) -> VerificationReport:
    """Check every artefact of a bundle against its reference.

    The inputs are standard normal, at the smallest shapes of the profile and at a batch of up to 3. An int8 or fp8
    bundle is an exception: its ``engine.onnx`` and engine run on the samples that the bundle keeps, or on random inputs
    within the calibrated range.

    Args:
        bundle: a bundle or its directory.
        model: the source model; None for the file named in the manifest, if it exists unchanged.
        arch: the network of a state dict; None for the manifest's.
        trust_pickle: allow a source file that contains code.
        tolerance: largest relative error; None for 1e-5 in fp32, 5e-3 in fp16, 0.5 in int8 and fp8. In int8 and fp8
            it applies to ``engine.onnx`` and the engine; ``model.onnx`` is fp32 there and must be within 1e-5.
        require_engine: whether an engine that cannot run on this machine is a failure.
        seed: seed of the random inputs.
        device: number of the GPU that runs a TensorRT engine.

    Returns:
        All checks. An artefact that cannot run here is ``not run``, which is no failure by itself.

    Raises:
        InputError: there is no bundle or no such GPU, or ``model`` is not the model that was built.
        IntegrityError: a bundle's file is missing or was changed.

    Example:
        >>> import trtkp
        >>> report = trtkp.verify("kep")
        >>> report.ok, {check.artefact: check.status for check in report.checks}["engine.onnx"]
        (True, 'verified')
    """
    check_values(verify, {"tolerance": tolerance, "seed": seed, "device": device})
    check_gpu(device)
    opened = bundle if isinstance(bundle, Bundle) else load(bundle)
    checker = _Checker(opened, tolerance, seed)
    checks = (
        checker.source(None if model is None else Path(model), arch, trust_pickle),
        checker.graph("model.onnx"),
        checker.graph("engine.onnx"),
        *checker.ranges(),
        *checker.engine(device),
    )
    quantised = opened.manifest.quantisation
    scores = quantised.scores.model_dump() if quantised is not None else None
    return VerificationReport(str(opened.path), opened.manifest.precision, checks, require_engine, scores)


def dense_graph(packed: ir.Model) -> ir.Model:
    """Make the dense masked net: every packed operator becomes one Conv, its weight unpacked with NumPy."""
    from trtkp.graph.passes.pack import packed_nodes
    from trtkp.plan.planner import apply_plan

    return apply_plan(packed, {str(node.name): "dense" for node in packed_nodes(packed)})


def compare_graphs(
    name: str,
    candidate: ir.Model | Path,
    reference: ir.Model,
    shapes: Mapping[str, Shape],
    precision: str,
    *,
    feeds: Arrays | None = None,
    fuse_qdq: bool = True,
) -> Check:
    """Run two graphs in ONNX Runtime on the same inputs, and compare their outputs.

    Args:
        name: name of the candidate in the result.
        candidate: the graph to check, or its file.
        reference: the graph with the expected outputs.
        shapes: shapes of the random inputs, by name.
        precision: precision of the candidate, which sets the tolerance.
        feeds: inputs to use instead of random ones.
        fuse_qdq: whether ONNX Runtime may fuse the candidate's Q/DQ pairs into integer kernels.
    """
    from trtkp.engine.onnxruntime import OrtRunner

    with OrtRunner(reference) as runner:
        feeds = random_feeds(runner.inputs, shapes, seed=0) if feeds is None else feeds
        expected = runner.run(feeds)
    with OrtRunner(candidate, fuse_qdq=fuse_qdq) as runner:
        found = runner.run(_cast(feeds, runner))
    return _compare(name, "dense masked ONNX", [(found, expected)], TOLERANCE[precision])


def check_built(
    backend: Backend, request: BuildRequest, result: BuildResult, precision: str, *, fuse_qdq: bool = True
) -> None:
    """Compare a compiled engine with its graph before it is published; do nothing where it cannot run.

    The inputs are random, at the smallest and at the typical shapes of the profile.

    Args:
        backend: the backend that built the engine.
        request: the build request, with the graph.
        result: the result of the build, with the engine.
        precision: precision of the engine, which sets the tolerance.
        fuse_qdq: whether ONNX Runtime may fuse the graph's Q/DQ pairs into integer kernels.

    Raises:
        JobError: the engine computes something else than its graph, or does not run.
    """
    if not backend.compiles or not backend.availability(request.device).can_run:
        return
    if why_not_built_for_here(result.targets, request.device) is not None:
        return
    options = RunOptions(
        allow_host_code=request.trt.carries_code,
        refit_from=request.onnx if request.trt.strip_weights else None,
        device=request.device,
    )
    with backend.open(result.files[0], options=options) as runner:
        shapes = ({name: getattr(limits, size) for name, limits in request.profile.items()} for size in ("min", "opt"))
        feeds = [random_feeds(runner.inputs, each, seed=0) for each in shapes]
        check = _against_graph(runner, request.onnx, feeds, TOLERANCE[precision], fuse_qdq=fuse_qdq)
    if check.status == "failed":
        raise JobError(
            f"the engine computes something else than its graph: {check.summary}",
            remedy="build with --no-plugins, and report it",
        )


def _against_graph(runner: Runner, onnx: Path, feeds: Sequence[Arrays], tolerance: float, *, fuse_qdq: bool) -> Check:
    from trtkp.verification.outputs import run_both

    return _compare("engine", "its graph", run_both(runner, onnx, feeds, fuse_qdq=fuse_qdq), tolerance)


def calibrated_inputs(bundle: Bundle, shape: Shape, seed: int) -> npt.NDArray[np.float32]:
    """Return inputs [N, ...] within the ranges of a quantised bundle.

    They are the samples that the bundle keeps, repeated as needed; or random ones if it keeps none of this shape.
    """
    from trtkp.bundle.calibration import CALIBRATION, load_calibration

    kept = bundle.samples
    if kept is not None and kept.shape[1:] == shape[1:]:
        return np.resize(kept, shape)
    calibration = load_calibration(bundle.file(CALIBRATION))
    return inputs_in_range(calibration, bundle.manifest.inputs[0].name, shape, seed)


def inputs_in_range(calibration: Calibration, name: str, shape: Shape, seed: int) -> npt.NDArray[np.float32]:
    """Return random inputs, uniform between the smallest and the largest value of the calibration samples."""
    found = calibration.tensors.get(name)
    low, high = (found.low, found.high) if found is not None else (-1.0, 1.0)
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def _cast(feeds: Arrays, runner: Runner) -> dict[str, npt.NDArray[Any]]:
    """Cast inputs to the runner's types: an engine of mixed precision may take float16, its reference float32."""
    dtypes = {spec.name: spec.dtype for spec in runner.inputs}
    return {name: feed.astype(dtypes.get(name, feed.dtype), copy=False) for name, feed in feeds.items()}


class _Checker:
    """Runs the checks of one bundle. The dense masked net, the reference of most of them, runs only once."""

    def __init__(self, bundle: Bundle, tolerance: float | None, seed: int) -> None:
        import onnx_ir as ir

        from trtkp.engine.onnxruntime import OrtRunner

        self.bundle, self.manifest, self.seed = bundle, bundle.manifest, seed
        quantised = self.manifest.quantisation
        limit = TOLERANCE[self.manifest.precision] if tolerance is None else tolerance
        #: Tolerance of ``model.onnx``, and that of ``engine.onnx`` and the engine.
        self.tolerance, self.engine_tolerance = limit, limit
        with OrtRunner(dense_graph(ir.load(bundle.file("model.onnx")))) as runner:
            self.feeds = [random_feeds(runner.inputs, shapes, seed) for shapes in self._shapes()]
            self.expected = [runner.run(feeds) for feeds in self.feeds]
            self.engine_feeds, self.engine_expected = self.feeds, self.expected
            if quantised is not None:
                self.tolerance = TOLERANCE["fp32"]
                name, dtype = runner.inputs[0].name, runner.inputs[0].dtype
                self.engine_feeds = [
                    {name: calibrated_inputs(bundle, shapes[name], seed).astype(dtype)} for shapes in self._shapes()
                ]
                self.engine_expected = [runner.run(feeds) for feeds in self.engine_feeds]

    def _shapes(self) -> list[dict[str, Shape]]:
        """The smallest shapes, and a batch of up to 3 where the profile allows it.

        The second batch shows errors that a batch of 1 hides, such as a batch size baked into a Reshape.
        """
        smallest = {name: tuple(shapes["min"]) for name, shapes in self.manifest.profile.items()}
        batched = {
            name: (*(max(low, min(3, high)) for low, high in zip(shapes["min"][:1], shapes["max"][:1], strict=True)),
                   *shapes["min"][1:])
            for name, shapes in self.manifest.profile.items()
        }  # fmt: skip
        return [smallest] if batched == smallest else [smallest, batched]

    @property
    def _fused(self) -> bool:
        quantised = self.manifest.quantisation
        return quantised is None or quantised.fuse_qdq

    def graph(self, name: str) -> Check:
        """Compare a graph of the bundle, run by ONNX Runtime, with the dense masked net."""
        from trtkp.engine.onnxruntime import OrtRunner

        with OrtRunner(self.bundle.file(name), fuse_qdq=self._fused) as runner:
            return self._compare_engine(name, runner) if name == "engine.onnx" else self._compare(name, runner)

    def ranges(self) -> list[Check]:
        """In fp16, check that float16 can hold every activation."""
        import onnx_ir as ir

        from trtkp.verification.ranges import FLOAT16_MAX, beyond_float16

        if self.manifest.precision != "fp16":
            return []
        artefact, against = "activations", "range of fp16"
        found = beyond_float16(ir.load(self.bundle.file("engine.onnx")), self._shapes()[-1], self.seed)
        if found is None:
            return [Check(artefact, against, "verified")]
        reason = f"{found[0]} reaches {found[1]:.3g}, beyond fp16's {FLOAT16_MAX:.0f}; build with --precision fp32"
        return [Check(artefact, against, "failed", reason=reason)]

    def engine(self, device: int) -> list[Check]:
        """Compare the engine with the dense masked net and, if it was compiled, with the graph it was built from."""
        from trtkp.engine import NotRunnableError, get_backend

        try:
            with self.bundle.open(options=RunOptions(device=device)) as runner:
                checks = [self._compare_engine("engine", runner)]
                if get_backend(self.manifest.backend).compiles:
                    feeds = [_cast(feeds, runner) for feeds in self.engine_feeds]
                    graph = self.bundle.file("engine.onnx")
                    checks.append(_against_graph(runner, graph, feeds, self.engine_tolerance, fuse_qdq=self._fused))
                return checks
        except NotRunnableError as error:
            return [Check("engine", "dense masked ONNX", "not run", reason=error.message)]

    def source(self, model: Path | None, arch: str | None, trust_pickle: bool) -> Check:
        """Compare the dense masked net with the source model whose pruned weights are set to zero."""
        record = self.manifest.source
        path = model if model is not None else self.bundle.path / record.file
        artefact = "dense masked ONNX"
        if model is None and not path.is_file():
            reason = f"the source model {path.name} does not exist; name it with --model"
            return Check(artefact, record.reference, "not run", reason=reason)
        from trtkp.model import load_model

        shapes = [f"{name}:{'x'.join(map(str, ranges['opt']))}" for name, ranges in self.manifest.profile.items()]
        needs_shape = record.format in ("state-dict", "pickle", "torchscript")
        try:
            source = load_model(
                path,
                arch=arch or record.arch,
                input_shape=shapes if needs_shape else None,
                trust_pickle=trust_pickle,
            )
        except TrtkpError as error:
            if model is not None:
                raise
            return Check(artefact, record.reference, "not run", reason=str(error))
        if source.sha256 != record.sha256:
            if model is not None:
                raise InputError(
                    "is not the model that this bundle was built from (its SHA-256 differs)", file=path,
                    remedy="name that model, or build the bundle again",
                )  # fmt: skip
            reason = f"the source model {path.name} was changed since the build"
            return Check(artefact, record.reference, "not run", reason=reason)
        return self._compare_source(source)

    def _compare(self, artefact: str, runner: Runner) -> Check:
        pairs = [(runner.run(feeds), expected) for feeds, expected in zip(self.feeds, self.expected, strict=True)]
        return _compare(artefact, "dense masked ONNX", pairs, self.tolerance)

    def _compare_engine(self, artefact: str, runner: Runner) -> Check:
        pairs = [
            (runner.run(_cast(feeds, runner)), want)
            for feeds, want in zip(self.engine_feeds, self.engine_expected, strict=True)
        ]
        return _compare(artefact, "dense masked ONNX", pairs, self.engine_tolerance)

    def _compare_source(self, source: SourceModel) -> Check:
        parameters = source.parameters()
        weights = {name: parameters[name] * index.mask() for name, index in self.bundle.index_sets.items()}
        pairs = []
        for feeds, found in zip(self.feeds, self.expected, strict=True):
            # An fp16 bundle takes float16, but its source model computes in float32.
            full = {name: feed.astype(np.float32) if feed.dtype.kind == "f" else feed for name, feed in feeds.items()}
            pairs.append((found, source.run(full, weights)))
        return _compare("dense masked ONNX", source.reference_name, pairs, self.tolerance)


def _compare(artefact: str, against: str, pairs: Sequence[tuple[Arrays, Arrays]], tolerance: float) -> Check:
    """Compare outputs. Keeps for every output the worst errors over all runs."""
    errors: dict[str, OutputError] = {}
    for found, expected in pairs:
        for name, reference in expected.items():
            if name not in found:
                return Check(artefact, against, "failed", reason=f"it has no output {name}", tolerance=tolerance)
            # float64, because the squares of float16 values overflow
            a, b = np.asarray(found[name], np.float64), np.asarray(reference, np.float64)
            if a.shape != b.shape:
                reason = f"output {name} has shape {list(a.shape)}, expected {list(b.shape)}"
                return Check(artefact, against, "failed", reason=reason, tolerance=tolerance)
            with np.errstate(invalid="ignore"):  # infinities on both sides give NaN, which fails
                apart = a - b
            difference, norm = np.linalg.norm(apart), np.linalg.norm(b)
            relative = float(difference / norm) if norm else (0.0 if difference == 0 else float("inf"))
            error = OutputError(float(np.abs(apart).max(initial=0.0)), relative)
            if name not in errors or _order(error.relative) > _order(errors[name].relative):
                errors[name] = error
    passed = all(error.relative <= tolerance for error in errors.values())  # NaN fails
    return Check(artefact, against, "verified" if passed else "failed", tolerance=tolerance, outputs=errors)


def _round_up(error: float) -> float:
    """Round up to one significant digit: 0.0123 becomes 0.02."""
    scale = 10.0 ** np.floor(np.log10(error))
    return float(np.ceil(error / scale) * scale)


def _order(error: float) -> float:
    return float("inf") if np.isnan(error) else error
