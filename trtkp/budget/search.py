"""``trtkp.search``: search ratios and granularities layer by layer, and write what was found."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.budget.files import check_output, write
from trtkp.budget.options import SearchOptions
from trtkp.budget.run import SearchResult, run_search
from trtkp.engine import cpu_backend
from trtkp.machine.packages import require
from trtkp.pipeline.options import BuildOptions

if TYPE_CHECKING:
    from trtkp.data.labelled import LabelledData
    from trtkp.pipeline.job import Progress

__all__ = ["search"]

_PACKAGES = {"optuna": "optuna", "plotly": "plotly", "scipy": "scipy"}


def search(
    model: str | PathLike[str],
    output: str | PathLike[str],
    *,
    options: SearchOptions,
    data: LabelledData | str | PathLike[str] | None = None,
    build: BuildOptions | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find a ratio and a granularity for every layer, by measured latency and by the error that each layer makes.

    Nothing is trained. The search times layers in ONNX Runtime and scores nets on the data. Interrupted, the next call
    with the same arguments continues from what was measured.

    Args:
        model: model file, in any format that `trtkp.load_model` reads.
        output: directory to write: ``allocation.json`` for the setting ``allocation`` of a method, the whole record as
            ``search.json``, and ``trade-off.html``. Only an older search there is replaced.
        options: the target, and what each layer may become.
        data: inputs [N, ...], with labels or without: arrays, or a path that `trtkp.data.samples.load_samples` reads.
            A search without data is refused.
        build: shapes, layers and threads, as for `trtkp.build`; the backend is always onnxruntime.
        progress: called with a phase, the steps done and the steps in all.

    Returns:
        The allocation found, the net with it (latency and MACs as shares of the dense net's), and the points tried.

    Raises:
        InputError: an option, the model or the data cannot be used, no choice reaches the target, or ``output`` holds
            something else than a search.
        JobError: no net stays within ``max_drop``, or a package of the extra ``search`` is missing.

    Example:
        >>> import trtkp
        >>> options = trtkp.SearchOptions(target_flops=0.8, ratios=(0.5,), filter_groups=(16,), trials=2)
        >>> found = trtkp.search("net.onnx", "found", options=options, data="samples.npz")
        >>> found.found.macs <= 0.8
        True
        >>> build = trtkp.BuildOptions(backend="onnxruntime")
        >>> allocation = "found/allocation.json"
        >>> bundle = trtkp.build("net.onnx", "searched", method="vskp", allocation=allocation, options=build)
        >>> bundle.manifest.totals.retained_macs < bundle.manifest.totals.dense_macs
        True
    """
    require("a search", "search", _PACKAGES)
    folder = Path(output)
    check_output(folder)
    build = replace(build or BuildOptions(), backend=cpu_backend().name)
    result = run_search(model, data, options, state=folder, options=build, progress=progress)
    write(result, folder, f"{Path(model).name}, {options.method}")
    return result
