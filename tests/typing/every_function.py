"""A program that calls every public function, for mypy: types go in and come out as the signatures say."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np

import trtkp


def tell(phase: str, done: int, total: int) -> None:
    """A progress callback."""


def prune_and_build(model: Path, data: Path) -> trtkp.Bundle:
    """From a model to bundles."""
    assert_type(trtkp.load_model(model, input_shape=["1x3x8x8"]), trtkp.SourceModel)
    training = trtkp.read_recipe("recipe.yaml")
    assert_type(training, trtkp.Training)
    prune_options = trtkp.PruneOptions(training=training, device="cpu")
    trtkp.Training(data=trtkp.Preprocessing(flip=True, pad=4), finetune=trtkp.Recipe(epochs=10, milestones=(5, 8)))
    pruned = trtkp.prune(model, "pruned", method="vskp", options=prune_options, data=data, progress=tell, ratio=0.5)
    assert_type(pruned, trtkp.Pruned)
    assert_type(trtkp.load_pruned("pruned").manifest, trtkp.PrunedManifest)
    options = trtkp.BuildOptions(precision="fp16", opt=["8x3x8x8"], tensorrt=trtkp.TrtOptions(refit=True))
    labelled = trtkp.LabelledData(np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, np.int64))
    trtkp.build(pruned.path, "bundle", options=options, data=labelled, progress=tell)
    trtkp.build(model, "bundle", method="pptkp", ratio=0.5, quantiles=(0.2, 0.4, 0.6), cluster=True)
    methods: list[trtkp.Method] = [
        trtkp.KEP(n=4, share="per-layer"), trtkp.VSKP(ratio=0.5), trtkp.PPTKP(point=1), trtkp.SOKS(ratio=0.5),
        trtkp.DPPNet(patterns=4), trtkp.L1(ratio=0.5), trtkp.Channels(ratio=0.5), trtkp.Dense(), trtkp.FromZeros(),
    ]  # fmt: skip
    bundles = [trtkp.build(model, method.name, method=method) for method in methods]
    assert_type(bundles, list[trtkp.Bundle])
    calibration = trtkp.CalibrationOptions(samples=64)
    return trtkp.calibrate(bundles[0], "int8", data=data, kind="int8", calibration=calibration)


def choose(model: Path, data: Path) -> None:
    """What to prune."""
    advice = trtkp.advise(model, trtkp.AdviceOptions(seconds=10.0), tell)
    assert_type(advice, trtkp.Advice)
    search_options = trtkp.SearchOptions(target_latency=0.6, ratios=(0.25, 0.5))
    found = trtkp.search(model, "found", options=search_options, data=data, build=trtkp.BuildOptions(), progress=tell)
    assert_type(found, trtkp.SearchResult)


def use(bundle: trtkp.Bundle) -> None:
    """What to do with a bundle."""
    assert_type(trtkp.verify(bundle, tolerance=1e-4), trtkp.VerificationReport)
    assert_type(trtkp.inspect(bundle), trtkp.Inspection)
    assert_type(trtkp.inspect("bundle").manifest, trtkp.Manifest)
    assert_type(trtkp.bench([bundle, "dense"], batch=8), list[trtkp.BenchResult])
    comparison = trtkp.compare(["dense", bundle], batches=[1, 8], progress=tell)
    assert_type(comparison, trtkp.Comparison)
    assert_type(trtkp.write_report(comparison, "report.html"), Path)
    with trtkp.load("bundle") as opened:
        assert_type(opened, trtkp.Bundle)
        assert_type(opened.index_sets, dict[str, trtkp.IndexSet])
        opened.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
        opened.open(options=trtkp.RunOptions(graphs=True)).close()


def serve() -> None:
    """A server, and what this machine has."""
    assert_type(trtkp.doctor(), list[trtkp.Finding])

    def ready(addresses: trtkp.Addresses) -> None:
        assert_type(addresses.models, dict[str, list[str]])

    try:
        trtkp.serve(["bundle"], trtkp.ServeOptions(port=0), ready)
    except (trtkp.IntegrityError, trtkp.NotRunnableError) as error:
        assert_type(error.remedy, str | None)
    except (trtkp.InputError, trtkp.JobError) as error:
        assert_type(error.exit_code, int)
    except trtkp.TrtkpError as error:
        assert_type(error.message, str)
