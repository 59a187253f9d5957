"""The commands that make something of a model: pruned models, bundles, index files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtkp.cli import options as opt
from trtkp.cli import show
from trtkp.errors import InputError

if TYPE_CHECKING:
    from trtkp.calib.options import CalibrationOptions
    from trtkp.data.labelled import LabelledData
    from trtkp.pruning.methods.vskp_lists import Listed

__all__ = ["build", "calibrate", "export_index", "prune"]

_BUNDLE = typer.Argument(help="Directory that trtkp build wrote.", show_default=False)


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
    from trtkp.engine.options import TrtOptions
    from trtkp.pipeline.build import build as build_bundle
    from trtkp.pipeline.options import BuildOptions

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
    fully_connected: opt.FullyConnected = None,
    reactivate: opt.Reactivate = None,
    index: opt.Index = None,
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
    test_every: opt.TestEvery = 1,
    tensorboard: opt.TensorBoard = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    json: opt.Json = False,
) -> None:
    """Prune a model with training before and after; trtkp build takes what it writes."""
    from dataclasses import replace

    from trtkp.pruning.methods.registry import make_method
    from trtkp.pruning.run import PruneOptions, with_epochs
    from trtkp.pruning.run import prune as prune_model
    from trtkp.pruning.train.recipe import Training, read_recipe

    settings = {name: value for name, value in locals().items() if name in opt.PRUNING_SETTINGS and value is not None}
    training = read_recipe(recipe) if recipe is not None else Training()
    if seed is not None:
        training = replace(training, seed=seed)
    if mean is not None or std is not None:
        normal = replace(training.data, mean=opt.numbers(mean, "--mean", 0.0), std=opt.numbers(std, "--std", 1.0))
        training = replace(training, data=normal)
    name = "from-zeros" if from_zeros else method or training.method or "kep"
    of_recipe = training.settings if name == training.method else {}
    chosen = _listed(index, method, settings) or make_method(name, **of_recipe | settings)
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
                test_every=test_every,
                tensorboard=tensorboard,
            ),
            data=data,
            progress=progress,
        )
    if pruned.written:
        show.pruned(pruned, json=json)


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
    from trtkp.pipeline.calibrate import calibrate as calibrate_bundle
    from trtkp.pipeline.options import BuildOptions

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


def export_index(
    path: Annotated[Path, typer.Argument(help="What trtkp prune or trtkp build wrote.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .safetensors.", show_default=False)],
    form: Annotated[
        str, typer.Option("--form", help="bitmap, a bit per kernel, or list, an int32 per kept kernel.")
    ] = "bitmap",
) -> None:
    """Write the lists of whole kernels in V-SKP's own forms; trtkp prune --index takes them."""
    from trtkp.bundle import load
    from trtkp.bundle.pruned import is_pruned, load_pruned
    from trtkp.pruning.methods.vskp_lists import save_index

    save_index(output, (load_pruned(path) if is_pruned(path) else load(path)).index_sets, form)


def _listed(index: Path | None, method: str | None, settings: dict[str, Any]) -> Listed | None:
    """The method that takes kernels chosen elsewhere, where a file of them was given."""
    if index is None:
        return None
    from trtkp.pruning.methods.vskp_lists import Listed

    if settings or method not in (None, Listed.name):
        what = f"--{next(iter(settings)).replace('_', '-')}" if settings else f"--method {method}"
        raise InputError(f"{what} means nothing beside --index", remedy="leave it out")
    return Listed(index)


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
    from trtkp.data.labelled import load_data

    if path is None or precision in ("int8", "fp8") or path.is_dir() or path.suffix != ".npz":
        return path
    return load_data(path)
