"""The commands that look at what is there: models, bundles, engines, the machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from trtkp.cli import options as opt
from trtkp.cli import serving, show
from trtkp.errors import InputError

__all__ = ["advise", "bench", "compare", "doctor", "inspect", "verify"]

_BUNDLE = typer.Argument(help="Directory that trtkp build wrote.", show_default=False)


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
    from trtkp.budget.advise import AdviceOptions
    from trtkp.budget.advise import advise as advise_on

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
    from trtkp.verification.bundle import verify as verify_bundle

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
    from trtkp.comparison.bench import bench as bench_bundles

    with show.progress(quiet=json) as progress:
        progress("Bench", 0, 1)
        results = bench_bundles(bundles or [], batch=batch, threads=threads, warmup=warmup, runs=runs, seconds=seconds)
    show.benched(results, json=json)


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


def doctor(json: opt.Json = False) -> None:
    """Show what this machine can build and run with, and what to do about the rest."""
    from trtkp.engine.doctor import diagnose

    show.diagnosed(diagnose(), json=json)
