"""Execute one run of the study through ``trtkp.pruning.run.prune``, and make its row of results."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.accuracy.plan import Run, Scale
from examples import shapes_data
from examples.nets import export
from examples.nets.digits import digits_cnn
from examples.nets.shapes import shapes_cnn
from trtkp.bundle.pruned import Pruned
from trtkp.model import SourceModel, load_model
from trtkp.model.torch_backend import TorchBackend
from trtkp.pruning.methods.channels import Channels
from trtkp.pruning.run import PruneOptions, prune
from trtkp.pruning.train.recipe import Preprocessing, Recipe, Training

__all__ = ["execute", "make_data", "timed"]

_LR, _DENSE_LR, _BATCH = 0.05, 0.1, 64
_SHAPES = {"shapes": (3, 32, 32), "digits": (1, 16, 16)}
#: Steps of the bisection for channel pruning's ratio: ten find it to 0.1 %.
_STEPS = 10


def make_data(folder: Path, scale: Scale) -> None:
    """Write ``shapes.npz`` and ``digits.npz``, unless they exist."""
    if not (folder / "shapes.npz").exists():
        train, test = shapes_data.load(scale.train, scale.test, noise=scale.noise)
        _write(folder / "shapes.npz", train, test)
    if not (folder / "digits.npz").exists():
        from examples import digits_data

        train, test = digits_data.load()
        _write(folder / "digits.npz", tuple(part[: scale.train] for part in train), test)


def _write(path: Path, train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, x=train[0], y=train[1], x_test=test[0], y_test=test[1])
    part.replace(path)


def execute(run: Run, folder: Path, scale: Scale) -> dict[str, Any]:
    """Train and measure one run, continuing an interrupted one.

    Args:
        run: the run; the run that it starts from must be done.
        folder: folder of the study; the net is written to ``nets/<name>``.
        scale: sizes of the study.

    Returns:
        The row: accuracies (of the net it started from, before and after the fine-tune), and the shares that are kept
        of MACs, of parameters, and of the magnitudes of the pruned layers' weights (``mass``).
    """
    began = time.perf_counter()
    source = folder / "nets" / run.start / "model.pt2" if run.start else _fresh(run, folder, scale)
    settings = dict(run.settings)
    if "macs" in settings:
        settings["ratio"] = channel_ratio(source, settings.pop("macs"))
    pruned = prune(
        source, folder / "nets" / run.name, method=run.method, data=folder / f"{run.data}.npz",
        options=PruneOptions(training=_training(run), test_every=0), **settings,
    )  # fmt: skip
    manifest = pruned.manifest
    totals = manifest.totals
    return {
        "settings": settings,
        "accuracy": manifest.accuracy,
        "macs": totals.retained_macs / totals.dense_macs,
        "params": totals.retained_params / totals.dense_params,
        "mass": _mass(pruned, source, run, settings),
        "report": manifest.report,
        "warnings": manifest.warnings,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _fresh(run: Run, folder: Path, scale: Scale) -> Path:
    path = folder / f"{run.name}.pt2"
    if not path.exists():
        torch.manual_seed(run.seed)
        net = shapes_cnn(scale.width) if run.data == "shapes" else digits_cnn(scale.width)
        torch.export.save(export(net.eval(), _SHAPES[run.data]), path)
    return path


def _training(run: Run) -> Training:
    prepare, regularise, finetune = run.epochs
    towards: dict[str, Any] = {"batch": _BATCH, "lr": _LR, "weight_decay": 5e-4, "schedule": "constant"}
    last = towards | {"schedule": "cosine", "lr": _LR if run.start else _DENSE_LR}
    return Training(
        data=Preprocessing(flip=run.data == "shapes", pad=2 if run.data == "shapes" else 1),
        prepare=Recipe(epochs=prepare, **towards),
        regularise=Recipe(epochs=regularise, **towards),
        finetune=Recipe(epochs=finetune, **last),
        seed=run.seed,
    )


def _mass(pruned: Pruned, source: Path, run: Run, settings: dict[str, Any]) -> float | None:
    """The share of the weights' magnitudes that pruning keeps, in the pruned layers, by the weights before pruning."""
    model = load_model(source)
    weights = model.parameters()
    if run.method == "channels":
        small = _smaller(model, settings["ratio"])
        names = [name for name, value in weights.items() if value.ndim == 4]
        kept = sum(float(small.get_parameter(name).detach().abs().sum()) for name in names)
        return kept / sum(float(np.abs(weights[name]).sum()) for name in names)
    masks = {name: index.mask() for name, index in pruned.index_sets.items()}
    if not masks or any(weights[name].shape != mask.shape for name, mask in masks.items()):
        return None
    kept = sum(float(np.abs(weights[name])[mask].sum()) for name, mask in masks.items())
    return kept / sum(float(np.abs(weights[name]).sum()) for name in masks)


def channel_ratio(source: Path, ratio: float) -> float:
    """The smallest ratio of channels that leaves no more MACs than lists of kernels with ``ratio`` in every layer."""
    with tempfile.TemporaryDirectory() as folder:
        totals = prune(source, Path(folder) / "p", method="l1", ratio=ratio, allocation="uniform").manifest.totals
    model, low, high = load_model(source), 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        fits = _macs(_smaller(model, middle), model) <= totals.retained_macs
        low, high = (low, middle) if fits else (middle, high)
    return round(high, 4)


def _smaller(model: SourceModel, ratio: float) -> nn.Module:
    from trtkp.model.layers import named_graph, read_layers
    from trtkp.shapes import make_profile

    assert isinstance(model.backend, TorchBackend)
    table, _ = read_layers(named_graph(model), model, make_profile(model.inputs, {}, {}, {}))
    method = Channels(ratio=ratio, allocation="uniform")
    return method.convert(model.backend.graph_module(), table.layers, model.backend.example(), 0)


def _macs(net: nn.Module, model: SourceModel) -> int:
    """MACs of convolutions and fully connected layers for one sample."""
    assert isinstance(model.backend, TorchBackend)
    total = 0

    def count(module: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        weight = module.get_parameter("weight")
        total += weight.numel() * (out[0, 0].numel() if out.ndim == 4 else 1)

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(*model.backend.example())
    return total


def timed(names: list[str], folder: Path, threads: int, batch: int) -> dict[str, dict[str, float]]:
    """Latency of the nets' engines in ONNX Runtime, in milliseconds, timed in turn in one process.

    Args:
        names: names of the runs; the first is the dense net.
        folder: folder of the study.
        threads: CPU threads.
        batch: batch size.
    """
    import trtkp

    with tempfile.TemporaryDirectory() as place:
        shape = "x".join(map(str, (batch, *_SHAPES["shapes"])))
        options = trtkp.BuildOptions(backend="onnxruntime", threads=threads, opt=[shape])
        bundles = []
        # The first net is built twice and its first timing dropped. In every turn the first copy runs after the last
        # net, which may push its weights out of the cache; the second copy runs after a net like itself.
        for number, name in enumerate([names[0], *names]):
            net = folder / "nets" / name
            plain = name == names[0]
            source, method = (net / "model.pt2", "none") if plain else (net, None)
            bundles.append(trtkp.build(source, Path(place) / str(number), method=method, options=options))
        _, *results = trtkp.bench(bundles, batch=batch, threads=threads, runs=1000, seconds=60.0)
    return {
        name: {"median_ms": r.timing.median_ms, "p10_ms": r.timing.p10_ms, "p90_ms": r.timing.p90_ms}
        for name, r in zip(names, results, strict=True)
    }
