"""Options that mean the same in every command that has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from trtkp.errors import InputError

__all__ = [
    "PRUNING_SETTINGS",
    "Allocation",
    "Alpha",
    "Arch",
    "Backend",
    "Beta",
    "CalibrationFile",
    "CalibrationSamples",
    "Calibrator",
    "ChannelBlock",
    "Cluster",
    "Data",
    "Device",
    "Distil",
    "EmbedPlugins",
    "Epochs",
    "Equalise",
    "Fallback",
    "FilterGroup",
    "FilterGroup1x1",
    "FromZeros",
    "FullyConnected",
    "Groups",
    "HardwareCompatible",
    "Include",
    "Index",
    "InputShape",
    "Json",
    "LearningRate",
    "Level",
    "Lowering",
    "MaxDrop",
    "MaxShape",
    "Mean",
    "Measure",
    "MethodName",
    "MinShape",
    "N",
    "Nm",
    "OptShape",
    "Percentile",
    "Plugins",
    "Point",
    "Pointwise",
    "PointwiseKeep",
    "Precision",
    "Ratio",
    "Reactivate",
    "Recipe",
    "Refit",
    "RegulariseEpochs",
    "RemoveFilters",
    "Restart",
    "RoundTo",
    "Seed",
    "Shapes",
    "Share",
    "Skip",
    "Std",
    "StripWeights",
    "Target",
    "Threads",
    "TimingCache",
    "TrainBatch",
    "TrainPrecision",
    "TrainingData",
    "TrustPickle",
    "VersionCompatible",
    "Workspace",
    "counts",
    "numbers",
]

#: Parameters of commands that are settings of the pruning methods.
PRUNING_SETTINGS = frozenset(
    [
        "n", "ratio", "allocation", "share", "alpha", "beta", "pointwise", "pointwise_keep", "filter_group",
        "filter_group_1x1", "channel_block", "cluster", "round_to", "equalise", "point", "groups", "shapes",
        "remove_filters", "nm", "fully_connected", "reactivate",
    ]
)  # fmt: skip

_PRUNING, _MODEL, _ENGINE, _CALIBRATION = "Pruning", "Model", "Engine", "Calibration"

MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help="kep, vskp, pptkp, soks, l1, none for the dense model; trtkp prune takes dppnet and channels too. "
        "(default: kep)",
        rich_help_panel=_PRUNING,
    ),
]
N = Annotated[
    int | None,
    typer.Option("--n", help="KEP: elements kept of every kernel plane. (default: 4)", rich_help_panel=_PRUNING),
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        help="Share of elements (KEP, instead of --n), kernels (V-SKP, PPT-KP), stripes (SOKS) or channels to remove.",
        rich_help_panel=_PRUNING,
    ),
]
Allocation = Annotated[
    str | None,
    typer.Option(
        "--allocation",
        help="What --ratio means: one threshold for the net (global), the same share per layer (uniform), or a file "
        "that trtkp search wrote. (default: global)",
        rich_help_panel=_PRUNING,
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share",
        help="KEP: which planes share their positions: none, per-channel, per-filter, per-layer. (default: none)",
        rich_help_panel=_PRUNING,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        help="V-SKP: weight of magnitude against direction (default: 0.95). DPPNet: of the penalty (default: 0.0001).",
        rich_help_panel=_PRUNING,
    ),
]
FilterGroup = Annotated[
    int | None,
    typer.Option(
        "--filter-group",
        help="Filters that share a list; 1 is the papers'. (default: 1)",
        rich_help_panel=_PRUNING,
    ),
]
FilterGroup1x1 = Annotated[
    int | None,
    typer.Option(
        "--filter-group-1x1",
        help="V-SKP: the same for 1x1 layers, which need larger groups to pay. (default: --filter-group)",
        rich_help_panel=_PRUNING,
    ),
]
ChannelBlock = Annotated[
    int | None,
    typer.Option(
        "--channel-block",
        help="Consecutive channels that a list takes or leaves together. (default: 1)",
        rich_help_panel=_PRUNING,
    ),
]
Cluster = Annotated[
    bool | None,
    typer.Option(
        "--cluster/--no-cluster",
        help="Group filters that score alike, instead of consecutive ones.",
        rich_help_panel=_PRUNING,
    ),
]
RoundTo = Annotated[
    int | None,
    typer.Option("--round-to", help="Retained channels of a list are a multiple of this.", rich_help_panel=_PRUNING),
]
Beta = Annotated[
    float | None,
    typer.Option("--beta", help="V-SKP: weight of the layer's variance. (default: 0)", rich_help_panel=_PRUNING),
]
Pointwise = Annotated[
    bool | None,
    typer.Option("--pointwise/--no-pointwise", help="Prune 1x1 layers too.", rich_help_panel=_PRUNING),
]
PointwiseKeep = Annotated[
    float | None,
    typer.Option(
        "--pointwise-keep",
        help="V-SKP: share of a 1x1 layer's weights that no threshold may prune. (default: 0.001)",
        rich_help_panel=_PRUNING,
    ),
]
Equalise = Annotated[
    bool | None,
    typer.Option(
        "--equalise/--no-equalise",
        help="PPT-KP: every filter of a layer keeps the same number of kernels.",
        rich_help_panel=_PRUNING,
    ),
]
Point = Annotated[
    int | None,
    typer.Option(
        "--point", help="PPT-KP: the pruning point to take, from 1, instead of --ratio.", rich_help_panel=_PRUNING
    ),
]
Groups = Annotated[
    int | None,
    typer.Option("--groups", help="SOKS: filter groups of a layer. (default: 4)", rich_help_panel=_PRUNING),
]
Shapes = Annotated[
    str | None,
    typer.Option("--shapes", help="SOKS: a fixed shape set of ASKs, such as ASK_4a.", rich_help_panel=_PRUNING),
]
RemoveFilters = Annotated[
    bool | None,
    typer.Option(
        "--remove-filters/--keep-filters",
        help="SOKS: whole filter groups may lose every position, as SWP's filters do.",
        rich_help_panel=_PRUNING,
    ),
]
Nm = Annotated[
    str | None,
    typer.Option(
        "--nm",
        metavar="2:4",
        help="Of every four listed weights each filter keeps two; --ratio is what both remove.",
        rich_help_panel=_PRUNING,
    ),
]
FullyConnected = Annotated[
    bool | None,
    typer.Option(
        "--fully-connected/--no-fully-connected",
        help="V-SKP: prune the weights of fully connected layers too, by magnitude.",
        rich_help_panel=_PRUNING,
    ),
]
Reactivate = Annotated[
    bool | None,
    typer.Option(
        "--reactivate/--no-reactivate",
        help="V-SKP: after the fine-tune, let the next layer read filters that it left unmoved.",
        rich_help_panel=_PRUNING,
    ),
]
Index = Annotated[
    Path | None,
    typer.Option(
        "--index",
        help="V-SKP: take the kernels of this file of int32 lists or bitmaps, as trtkp export-index writes them.",
        rich_help_panel=_PRUNING,
    ),
]
FromZeros = Annotated[
    bool, typer.Option("--from-zeros", help="Prune nothing: pack the zeros that are there.", rich_help_panel=_PRUNING)
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Prune the layers of this name or pattern, instead of the method's default scope; repeatable.",
        rich_help_panel=_PRUNING,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip", help="Leave the layers of this name or pattern dense; repeatable.", rich_help_panel=_PRUNING
    ),
]

Arch = Annotated[
    str | None,
    typer.Option("--arch", help="package.module:factory of the network, for a state dict.", rich_help_panel=_MODEL),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        help="1x3x224x224 or name:1x3x224x224, where the file knows no shapes; repeatable.",
        rich_help_panel=_MODEL,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="Load formats that are code (pickled modules, TorchScript).", rich_help_panel=_MODEL
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help=".npz of x and y, folder of images, or CIFAR batches: adds the accuracy before and after; int8 and fp8 "
        "calibrate with it.",
        rich_help_panel=_MODEL,
    ),
]

Backend = Annotated[
    str,
    typer.Option("--backend", "-b", help="onnxruntime, tensorrt-rtx, tensorrt or auto.", rich_help_panel=_ENGINE),
]
Precision = Annotated[str, typer.Option("--precision", "-p", help="fp32, fp16, int8 or fp8.", rich_help_panel=_ENGINE)]
MinShape = Annotated[
    list[str] | None,
    typer.Option("--min", help="Smallest input shape, 1x3x224x224; repeatable.", rich_help_panel=_ENGINE),
]
OptShape = Annotated[
    list[str] | None, typer.Option("--opt", help="Usual input shape; plans are made for it.", rich_help_panel=_ENGINE)
]
MaxShape = Annotated[list[str] | None, typer.Option("--max", help="Largest input shape.", rich_help_panel=_ENGINE)]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="GPU architecture of a tensorrt-rtx engine, such as sm86; repeatable.", rich_help_panel=_ENGINE
    ),
]
Lowering = Annotated[
    str,
    typer.Option("--lowering", help="auto, or one form for every layer that can take it.", rich_help_panel=_ENGINE),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads of ONNX Runtime. (default: physical cores)", rich_help_panel=_ENGINE),
]
TimingCache = Annotated[
    bool,
    typer.Option(
        "--timing-cache/--no-timing-cache",
        help="Take times of layers and tactics from the user's cache (TRTKP_CACHE_DIR moves it) and keep them there.",
        rich_help_panel=_ENGINE,
    ),
]

Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure",
        help="Time the forms of layers where the engine can run here; else predict.",
        rich_help_panel=_ENGINE,
    ),
]

_TENSORRT = "TensorRT"
Plugins = Annotated[
    bool,
    typer.Option(
        "--plugins/--no-plugins",
        help="Let layers be computed by our plugins, where they pay.",
        rich_help_panel=_TENSORRT,
    ),
]
EmbedPlugins = Annotated[
    bool,
    typer.Option("--embed-plugins", help="The engine carries the plugin library.", rich_help_panel=_TENSORRT),
]
Level = Annotated[
    int | None,
    typer.Option("--level", help="Effort of the builder, 0 to 5. (default: the library's)", rich_help_panel=_TENSORRT),
]
Workspace = Annotated[
    int | None,
    typer.Option("--workspace", help="Most MiB that a tactic may work in.", rich_help_panel=_TENSORRT),
]
VersionCompatible = Annotated[
    bool,
    typer.Option("--version-compatible", help="The engine runs in later versions too.", rich_help_panel=_TENSORRT),
]
HardwareCompatible = Annotated[
    str,
    typer.Option(
        "--hardware-compatible",
        help="GPUs that it runs on besides: none, ampere+ or same-compute-capability.",
        rich_help_panel=_TENSORRT,
    ),
]
Refit = Annotated[bool, typer.Option("--refit", help="Weights can be exchanged later.", rich_help_panel=_TENSORRT)]
StripWeights = Annotated[
    bool,
    typer.Option(
        "--strip-weights", help="Leave weights out that can be refitted from engine.onnx.", rich_help_panel=_TENSORRT
    ),
]

Calibrator = Annotated[
    str,
    typer.Option("--calibrator", help="Ranges: min-max, entropy or percentile.", rich_help_panel=_CALIBRATION),
]
Percentile = Annotated[
    float,
    typer.Option("--percentile", help="Of magnitudes, for percentile.", rich_help_panel=_CALIBRATION),
]
CalibrationSamples = Annotated[
    int,
    typer.Option("--samples", help="Samples to measure ranges on, spread over the data.", rich_help_panel=_CALIBRATION),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="Points of accuracy that may be lost; layers go back to --fallback until it holds. (default: 0.5)",
        rich_help_panel=_CALIBRATION,
    ),
]
Fallback = Annotated[
    str | None,
    typer.Option(
        "--fallback",
        help="Type of the layers that are not quantised. (default: fp32 for onnxruntime, else fp16)",
        rich_help_panel=_CALIBRATION,
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="calibration.json, or a bundle with one: its ranges and precisions are taken as they are.",
        rich_help_panel=_CALIBRATION,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean", help="Of images in 0..1, for all channels or each: 0.485,0.456,0.406.", rich_help_panel=_CALIBRATION
    ),
]
Std = Annotated[str | None, typer.Option("--std", help="Likewise.", rich_help_panel=_CALIBRATION)]

_TRAINING = "Training"
TrainingData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help=".npz of x and y, folder of images per class, or CIFAR batches: to train with and to measure accuracy.",
        rich_help_panel=_TRAINING,
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="YAML file of the training, see examples/recipes/; options win.", rich_help_panel=_TRAINING
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", help="Of the fine-tune, pruned weights at zero.", rich_help_panel=_TRAINING),
]
RegulariseEpochs = Annotated[
    int | None,
    typer.Option(
        "--regularise-epochs",
        help="Of the training towards the masks, for methods that have one. (default: as --epochs)",
        rich_help_panel=_TRAINING,
    ),
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="First learning rate. (default: 0.01)", rich_help_panel=_TRAINING)
]
TrainBatch = Annotated[
    int | None, typer.Option("--batch", help="Global batch size. (default: 128)", rich_help_panel=_TRAINING)
]
TrainPrecision = Annotated[
    str | None,
    typer.Option("--amp", help="bf16 or fp16: automatic mixed precision.", rich_help_panel=_TRAINING),
]
Distil = Annotated[
    float | None,
    typer.Option("--distil", help="Weight of distillation from the dense net, 0..1.", rich_help_panel=_TRAINING),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Of order, augmentation and dropout.", rich_help_panel=_TRAINING)
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu or cuda. (default: a GPU where there is one)", rich_help_panel=_TRAINING),
]
Restart = Annotated[bool, typer.Option("--restart", help="Forget an interrupted training.", rich_help_panel=_TRAINING)]
TestEvery = Annotated[
    int,
    typer.Option("--test-every", help="Epochs between accuracies in the log, 0 for none.", rich_help_panel=_TRAINING),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", help="Folder for TensorBoard's event files.", rich_help_panel=_TRAINING),
]

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def numbers(text: str | None, flag: str, default: float) -> tuple[float, ...]:
    """``"0.485,0.456,0.406"`` as numbers.

    Raises:
        InputError: not numbers.
    """
    if text is None:
        return (default,)
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text}: not numbers separated by commas") from None
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"{flag} {text}: not finite")
    return values


def counts(text: str | None, flag: str) -> tuple[int, ...]:
    """``"1,8,32"`` as numbers; none where nothing was given.

    Raises:
        InputError: not whole numbers.
    """
    try:
        return () if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{flag} {text}: not whole numbers separated by commas", remedy=f"write {flag} 1,8,32"
        ) from None
