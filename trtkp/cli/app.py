"""The commands: each parses its options, calls one function of the Python API and shows what it returned."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

import trtkp
from trtkp.cli import options as opt
from trtkp.cli import serving, show
from trtkp.cli.search import search
from trtkp.errors import InputError, TrtkpError

if TYPE_CHECKING:
    from trtkp.calib.options import CalibrationOptions
    from trtkp.data import LabelledData

__all__ = ["app", "run"]

app = typer.Typer(
    name="trtkp",
    help="Kernel-level pruning of CNNs, packed, planned and built into TensorRT engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Exit status after Ctrl-C, as shells have it.
_INTERRUPTED = 130

_BUNDLE = typer.Argument(help="Directory that trtkp build wrote.", show_default=False)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors become one line on standard error, and a traceback only with ``--debug``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with nullcontext() if debug else _quiet_libraries():
            status = int(app(arguments, prog_name="trtkp", standalone_mode=False, obj=arguments) or 0)
            sys.stdout.flush()  # a reader that is gone shows itself here, not when the interpreter ends
        message = ""
    except BrokenPipeError:
        _discard_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        status, message = _explain(error)
    if status == _INTERRUPTED:  # raised, or already turned into a status
        message = "interrupted; nothing was changed"
    if message:
        show.error(message)
    return status


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit status and line of an error; no line where help was printed for want of arguments."""
    if isinstance(error, TrtkpError):
        return error.exit_code, str(error)
    if isinstance(error, TyperException):
        return 2, error.format_message()
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _INTERRUPTED, ""
    text = " ".join(str(error).split()) or "no message"
    return 1, f"internal error, {type(error).__name__}: {text[:300]}; run again with --debug and report it"


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Log lines and warnings of the libraries behind us are not for the user of a command."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _discard_output() -> None:
    """Nobody reads standard output any more; what is left in its buffer must not raise at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(trtkp.__version__)  # noqa: T201 - what was asked for
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and library logs; anywhere on the line.")] = False,
) -> None:
    """Kernel-level pruning of CNNs, packed, planned and built into TensorRT engines."""
    del version, debug  # dealt with by then; declared for the help


@app.command()
def build(
    model: Annotated[
        Path,
        typer.Argument(help="Exported program, state dict or ONNX file; told apart by content.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the bundle.", show_default=False)],
    method: opt.MethodName = None,
    n: opt.N = None,
    ratio: opt.Ratio = None,
    allocation: opt.Allocation = None,
    share: opt.Share = None,
    alpha: opt.Alpha = None,
    filter_group: opt.FilterGroup = None,
    filter_group_1x1: opt.FilterGroup1x1 = None,
    channel_block: opt.ChannelBlock = None,
    nm: opt.Nm = None,
    cluster: opt.Cluster = None,
    round_to: opt.RoundTo = None,
    beta: opt.Beta = None,
    pointwise: opt.Pointwise = None,
    pointwise_keep: opt.PointwiseKeep = None,
    equalise: opt.Equalise = None,
    point: opt.Point = None,
    groups: opt.Groups = None,
    shapes: opt.Shapes = None,
    remove_filters: opt.RemoveFilters = None,
    from_zeros: opt.FromZeros = False,
    layers: opt.Include = None,
    skip: opt.Skip = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    trust_pickle: opt.TrustPickle = False,
    data: opt.Data = None,
    backend: opt.Backend = "auto",
    precision: opt.Precision = "fp32",
    convert_io: Annotated[
        bool, typer.Option("--convert-io", help="With fp16, inputs and outputs are fp16 too.", rich_help_panel="Engine")
    ] = False,
    calibrator: opt.Calibrator = "min-max",
    percentile: opt.Percentile = 99.99,
    samples: opt.CalibrationSamples = 256,
    max_drop: opt.MaxDrop = None,
    fallback: opt.Fallback = None,
    calibration: opt.CalibrationFile = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    minimum: opt.MinShape = None,
    optimum: opt.OptShape = None,
    maximum: opt.MaxShape = None,
    target: opt.Target = None,
    lowering: opt.Lowering = "auto",
    threads: opt.Threads = None,
    timing_cache: opt.TimingCache = True,
    measure: opt.Measure = True,
    plugins: opt.Plugins = True,
    embed_plugins: opt.EmbedPlugins = False,
    level: opt.Level = None,
    workspace: opt.Workspace = None,
    version_compatible: opt.VersionCompatible = False,
    hardware_compatible: opt.HardwareCompatible = "none",
    refit: opt.Refit = False,
    strip_weights: opt.StripWeights = False,
    json: opt.Json = False,
) -> None:
    """Prune a model one-shot, export it and build an engine: one bundle."""
    from trtkp.engine.trt_options import TrtOptions
    from trtkp.pipeline import BuildOptions
    from trtkp.pipeline import build as build_bundle

    settings = {name: value for name, value in locals().items() if name in opt.PRUNING_SETTINGS}
    with show.progress(quiet=json) as progress:
        bundle = build_bundle(
            model,
            output,
            method="from-zeros" if from_zeros else method,
            options=BuildOptions(
                backend=backend,
                precision=precision,
                keep_io=not convert_io,
                min=minimum or (),
                opt=optimum or (),
                max=maximum or (),
                input_shape=input_shape or (),
                targets=target or (),
                lowering=lowering,
                include=layers or (),
                skip=skip or (),
                threads=threads,
                timing_cache=timing_cache,
                measure=measure,
                plugins=plugins,
                level=level,
                tensorrt=TrtOptions(
                    workspace_mib=workspace,
                    version_compatible=version_compatible,
                    hardware_compatible=hardware_compatible,  # type: ignore[arg-type]  # checked by the build
                    embed_plugins=embed_plugins,
                    refit=refit,
                    strip_weights=strip_weights,
                ),
                arch=arch,
                trust_pickle=trust_pickle,
                calibration=_calibration(calibrator, percentile, samples, max_drop, fallback, mean, std),
                calibration_file=calibration,
            ),
            data=_data(data, precision),
            progress=progress,
            **settings,
        )
    show.built(bundle, json=json)


@app.command()
def prune(
    model: Annotated[
        Path,
        typer.Argument(help="Exported program, state dict or ONNX file; told apart by content.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", show_default=False)],
    method: opt.MethodName = None,
    n: opt.N = None,
    ratio: opt.Ratio = None,
    allocation: opt.Allocation = None,
    share: opt.Share = None,
    alpha: opt.Alpha = None,
    filter_group: opt.FilterGroup = None,
    filter_group_1x1: opt.FilterGroup1x1 = None,
    channel_block: opt.ChannelBlock = None,
    cluster: opt.Cluster = None,
    round_to: opt.RoundTo = None,
    beta: opt.Beta = None,
    pointwise: opt.Pointwise = None,
    pointwise_keep: opt.PointwiseKeep = None,
    equalise: opt.Equalise = None,
    point: opt.Point = None,
    groups: opt.Groups = None,
    shapes: opt.Shapes = None,
    remove_filters: opt.RemoveFilters = None,
    from_zeros: opt.FromZeros = False,
    layers: opt.Include = None,
    skip: opt.Skip = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    trust_pickle: opt.TrustPickle = False,
    data: opt.TrainingData = None,
    recipe: opt.Recipe = None,
    epochs: opt.Epochs = None,
    regularise_epochs: opt.RegulariseEpochs = None,
    lr: opt.LearningRate = None,
    batch: opt.TrainBatch = None,
    amp: opt.TrainPrecision = None,
    distil: opt.Distil = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    restart: opt.Restart = False,
    mean: opt.Mean = None,
    std: opt.Std = None,
    json: opt.Json = False,
) -> None:
    """Prune a model with training before and after; trtkp build takes what it writes."""
    from dataclasses import replace

    from trtkp.prune.registry import make_method
    from trtkp.prune.train.recipe import Training, read_recipe
    from trtkp.pruning import PruneOptions, with_epochs
    from trtkp.pruning import prune as prune_model

    settings = {name: value for name, value in locals().items() if name in opt.PRUNING_SETTINGS and value is not None}
    training = read_recipe(recipe) if recipe is not None else Training()
    if seed is not None:
        training = replace(training, seed=seed)
    if mean is not None or std is not None:
        normal = replace(training.data, mean=opt.numbers(mean, "--mean", 0.0), std=opt.numbers(std, "--std", 1.0))
        training = replace(training, data=normal)
    name = "from-zeros" if from_zeros else method or training.method or "kep"
    of_recipe = training.settings if name == training.method else {}
    chosen = make_method(name, **of_recipe | settings)
    training = with_epochs(
        training, chosen, epochs=epochs, regularise=regularise_epochs, lr=lr, batch=batch, precision=amp, distil=distil
    )
    with show.progress(quiet=json) as progress:
        pruned = prune_model(
            model,
            output,
            method=chosen,
            options=PruneOptions(
                input_shape=input_shape or (),
                include=layers or (),
                skip=skip or (),
                arch=arch,
                trust_pickle=trust_pickle,
                training=training,
                device=device,
                restart=restart,
            ),
            data=data,
            progress=progress,
        )
    if pruned.written:
        show.pruned(pruned, json=json)


def _calibration(
    calibrator: str,
    percentile: float,
    samples: int,
    max_drop: float | None,
    fallback: str | None,
    mean: str | None,
    std: str | None,
) -> CalibrationOptions:
    from trtkp.calib.options import CalibrationOptions

    return CalibrationOptions(
        calibrator=calibrator,
        percentile=percentile,
        samples=samples,
        max_drop=max_drop,
        fallback=fallback,  # type: ignore[arg-type]  # checked where it is used
        mean=opt.numbers(mean, "--mean", 0.0),
        std=opt.numbers(std, "--std", 1.0),
    )


def _data(path: Path | None, precision: str) -> LabelledData | Path | None:
    """Accuracy alone needs labels, and an archive that has none is refused before the model is loaded."""
    from trtkp.data import load_data

    if path is None or precision in ("int8", "fp8") or path.is_dir() or path.suffix != ".npz":
        return path
    return load_data(path)


@app.command()
def advise(
    model: Annotated[
        Path,
        typer.Argument(help="Exported program, state dict or ONNX file; told apart by content.", show_default=False),
    ],
    layers: opt.Include = None,
    skip: opt.Skip = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    trust_pickle: opt.TrustPickle = False,
    optimum: opt.OptShape = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Batch size. (default: that of --opt)")] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Budget; the layers of most work come first.")] = 120.0,
    threads: opt.Threads = None,
    timing_cache: opt.TimingCache = True,
    json: opt.Json = False,
) -> None:
    """Time, before training, which granularity and density of pruning would pay in which layer on this machine."""
    from trtkp.plan.advise import AdviceOptions
    from trtkp.plan.advise import advise as advise_on

    with show.progress(quiet=json) as progress:
        advice = advise_on(
            model,
            AdviceOptions(
                include=layers or (),
                skip=skip or (),
                batch=batch,
                opt=optimum or (),
                input_shape=input_shape or (),
                seconds=seconds,
                threads=threads,
                timing_cache=timing_cache,
                arch=arch,
                trust_pickle=trust_pickle,
            ),
            progress,
        )
    show.advised(advice, json=json)


@app.command()
def calibrate(
    source: Annotated[
        Path, typer.Argument(help="An fp32 bundle, or a model file as build takes it.", show_default=False)
    ],
    data: opt.Data = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of the new bundle.", show_default=False)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", "-p", help="int8 or fp8.")] = "int8",
    calibrator: opt.Calibrator = "min-max",
    percentile: opt.Percentile = 99.99,
    samples: opt.CalibrationSamples = 256,
    max_drop: opt.MaxDrop = None,
    fallback: opt.Fallback = None,
    calibration: opt.CalibrationFile = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    trust_pickle: opt.TrustPickle = False,
    backend: opt.Backend = "auto",
    minimum: opt.MinShape = None,
    optimum: opt.OptShape = None,
    maximum: opt.MaxShape = None,
    target: opt.Target = None,
    threads: opt.Threads = None,
    json: opt.Json = False,
) -> None:
    """Quantise a bundle or a model: ranges from real data, explicit Q/DQ, layers that suffer stay as they were."""
    from trtkp.calib.bundles import calibrate as calibrate_bundle
    from trtkp.pipeline import BuildOptions

    if output is None:
        raise InputError("no place for the new bundle", remedy="give -o")
    if precision not in ("int8", "fp8"):
        raise InputError(f"--precision {precision}: calibration is for int8 and fp8")
    with show.progress(quiet=json) as progress:
        bundle = calibrate_bundle(
            source,
            output,
            data=data,
            kind=precision,  # type: ignore[arg-type]  # just checked
            calibration=_calibration(calibrator, percentile, samples, max_drop, fallback, mean, std),
            calibration_file=calibration,
            options=BuildOptions(
                backend=backend,
                min=minimum or (),
                opt=optimum or (),
                max=maximum or (),
                input_shape=input_shape or (),
                targets=target or (),
                threads=threads,
                arch=arch,
                trust_pickle=trust_pickle,
            ),
            progress=progress,
        )
    show.built(bundle, json=json)


@app.command()
def inspect(
    bundle: Annotated[Path, _BUNDLE],
    forms: Annotated[
        bool, typer.Option("--forms", help="Every form that was weighed, with its time, instead of the layers.")
    ] = False,
    json: opt.Json = False,
) -> None:
    """Show what a bundle holds: layers, index sets, parameters, MACs, bytes; or the forms that were weighed."""
    from trtkp.bundle import load

    if forms and not json:
        show.weighed(load(bundle))
    else:
        show.inspected(load(bundle), json=json)


@app.command()
def verify(
    bundle: Annotated[Path, _BUNDLE],
    model: Annotated[
        Path | None, typer.Option("--model", help="The source model, if it is no longer where it was.")
    ] = None,
    arch: opt.Arch = None,
    trust_pickle: opt.TrustPickle = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", help="Relative Frobenius error allowed. (default: 1e-5, fp16 5e-3, int8 and fp8 0.5)"
        ),
    ] = None,
    require_engine: Annotated[
        bool, typer.Option("--require-engine", help="An engine that cannot run here is a failure.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the random inputs.")] = 0,
    json: opt.Json = False,
) -> None:
    """Check every artefact of a bundle against its reference; exit status 1 when one fails."""
    from trtkp.verification import verify as verify_bundle

    with show.progress(quiet=json) as progress:
        progress("Verify", 0, 1)
        report = verify_bundle(
            bundle,
            model=model,
            arch=arch,
            trust_pickle=trust_pickle,
            tolerance=tolerance,
            require_engine=require_engine,
            seed=seed,
        )
    show.verified(report, json=json)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(help="Bundles, timed in turn; the first is the baseline.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Batch size. (default: the first profile's opt, with --load 1)")
    ] = None,
    threads: opt.Threads = None,
    warmup: Annotated[int, typer.Option("--warmup", help="Untimed rounds.")] = 10,
    runs: Annotated[int, typer.Option("--runs", help="Timed rounds.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", help="Budget of all rounds, or of the load.")] = 20.0,
    load: serving.Load = None,
    model: serving.LoadModel = None,
    clients: serving.Clients = 8,
    rate: serving.Rate = None,
    json: opt.Json = False,
) -> None:
    """Time bundles against each other: median, 10th and 90th percentile. With --load, a running server."""
    if load is not None:
        serving.bench_load(load, model, bundles, 1 if batch is None else batch, clients, rate, seconds, json=json)
        return
    from trtkp.benchmark import bench as bench_bundles

    with show.progress(quiet=json) as progress:
        progress("Bench", 0, 1)
        results = bench_bundles(bundles or [], batch=batch, threads=threads, warmup=warmup, runs=runs, seconds=seconds)
    show.benched(results, json=json)


@app.command()
def compare(
    context: typer.Context,
    engines: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more bundles, .onnx files or TensorRT engines of one model; the first is the baseline.",
            show_default=False,
        ),
    ],
    batch: Annotated[
        str | None, typer.Option("--batch", help="Batch sizes to time, 1,8,32. (default: the first one's opt)")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help=".npz of x (and y), folder of images, or CIFAR batches: outputs and accuracy are compared on it.",
        ),
    ] = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    input_shape: opt.InputShape = None,
    threads: opt.Threads = None,
    openings: Annotated[
        int, typer.Option("--openings", help="Times that every engine is opened anew; they share the rounds.")
    ] = 5,
    warmup: Annotated[int, typer.Option("--warmup", help="Untimed rounds for each opening and batch size.")] = 5,
    runs: Annotated[int, typer.Option("--runs", help="Timed rounds for each batch size.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", help="Budget of a batch size.")] = 20.0,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Profile layer by layer, in runs of their own.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of random inputs and of the bootstrap.")] = 0,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a report: one file that needs no network.", show_default=False)
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write a row for each engine and batch size.", show_default=False)
    ] = None,
    json: opt.Json = False,
) -> None:
    """Compare engines: speed with its confidence, outputs, accuracy, size, memory, time layer by layer."""
    from trtkp.comparison import compare as compare_engines
    from trtkp.comparison.files import check_target, write_text
    from trtkp.comparison.report import check_packages, write_report
    from trtkp.comparison.table import csv_text

    written = [path for path in (csv, html) if path is not None]
    for path in written:
        check_target(path, engines)
    if len({path.resolve() for path in written}) < len(written):
        raise InputError("--csv and --html name the same file")
    if html is not None:
        check_packages()
    with show.progress(quiet=json) as progress:
        comparison = compare_engines(
            engines,
            batches=opt.counts(batch, "--batch"),
            data=data,
            mean=opt.numbers(mean, "--mean", 0.0),
            std=opt.numbers(std, "--std", 1.0),
            input_shape=input_shape or (),
            threads=threads,
            openings=openings,
            warmup=warmup,
            runs=runs,
            seconds=seconds,
            layers=layers,
            seed=seed,
            progress=progress,
        )
    if csv is not None:
        write_text(csv, csv_text(comparison))
    if html is not None:
        write_report(comparison, html, command=shlex.join(["trtkp", *context.obj]))
    show.compared(comparison, written, json=json)


@app.command()
def doctor(json: opt.Json = False) -> None:
    """Show what this machine can build and run with, and what to do about the rest."""
    from trtkp.doctor import diagnose

    show.diagnosed(diagnose(), json=json)


app.command()(search)
app.command()(serving.serve)
app.command("export-triton")(serving.export_triton)
app.command("export-kserve")(serving.export_kserve)
