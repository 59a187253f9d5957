"""Options that mean the same in every command that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Allocation",
    "Alpha",
    "Arch",
    "Backend",
    "ChannelBlock",
    "Data",
    "FilterGroup",
    "FromZeros",
    "Include",
    "InputShape",
    "Json",
    "Lowering",
    "MaxShape",
    "MethodName",
    "MinShape",
    "N",
    "OptShape",
    "Precision",
    "Ratio",
    "Share",
    "Skip",
    "Target",
    "Threads",
    "TrustPickle",
]

_PRUNING, _MODEL, _ENGINE = "Pruning", "Model", "Engine"

MethodName = Annotated[
    str, typer.Option("--method", "-m", help="kep, vskp, or none for the dense model.", rich_help_panel=_PRUNING)
]
N = Annotated[
    int | None,
    typer.Option("--n", help="KEP: elements kept of every kernel plane. [default: 4]", rich_help_panel=_PRUNING),
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        help="Share of elements (KEP, instead of --n) or kernels (V-SKP) to remove.",
        rich_help_panel=_PRUNING,
    ),
]
Allocation = Annotated[
    str | None,
    typer.Option(
        "--allocation",
        help="What --ratio means: one threshold for the net (global) or the same share per layer (uniform). "
        "[default: global]",
        rich_help_panel=_PRUNING,
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share",
        help="KEP: which planes share their positions: none, per-channel, per-filter, per-layer. [default: none]",
        rich_help_panel=_PRUNING,
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha", help="V-SKP: weight of magnitude against direction. [default: 0.95]", rich_help_panel=_PRUNING
    ),
]
FilterGroup = Annotated[
    int | None,
    typer.Option(
        "--filter-group",
        help="V-SKP: filters that share a list; 1 is the paper. [default: 1]",
        rich_help_panel=_PRUNING,
    ),
]
ChannelBlock = Annotated[
    int | None,
    typer.Option(
        "--channel-block",
        help="V-SKP: consecutive channels that a list takes or leaves together. [default: 1]",
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
    typer.Option("--data", help=".npz of x and y: adds the accuracy before and after.", rich_help_panel=_MODEL),
]

Backend = Annotated[
    str,
    typer.Option("--backend", "-b", help="onnxruntime, tensorrt-rtx, tensorrt or auto.", rich_help_panel=_ENGINE),
]
Precision = Annotated[str, typer.Option("--precision", "-p", help="fp32 or fp16.", rich_help_panel=_ENGINE)]
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
    typer.Option("--threads", help="CPU threads of ONNX Runtime. [default: physical cores]", rich_help_panel=_ENGINE),
]

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
