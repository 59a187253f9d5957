"""The accuracy study: train every net that is not trained yet, time the engines, and write the page and its plots.

    python -m benchmarks.accuracy --out study --jobs 2 --docs docs/methods  # everything; run it again after a kill
    python -m benchmarks.accuracy --out study --tables groups,two-four
    python -m benchmarks.accuracy --out study --latency                     # time the engines again

Each run adds one line to ``results.jsonl`` in the folder. A run that was killed continues from its last checkpoint, and
every run is seeded. ``--scale smoke`` is a small study for the tests.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy.execute import execute, make_data, timed
from benchmarks.accuracy.plan import SCALES, TABLES, Run, runs_of
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.results import add_row, read_rows
from benchmarks.accuracy.schedule import in_turn
from benchmarks.provenance import provenance

__all__ = ["is_result_of", "main"]

#: Batch size for the timing of engines.
_BATCH = 8


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet. The exit status is 1 if a run failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--most", type=int, help="largest number of runs")
    parser.add_argument("--latency", action="store_true", help="only time the engines of the table of methods again")
    parser.add_argument("--docs", type=Path, help="folder for accuracy.md and its plots, once every run is done")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; they share the threads")
    options = parser.parse_args(arguments)
    scale, folder, tables = SCALES[options.scale], options.out, set(options.tables.split(","))
    (folder / "nets").mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    if unknown := tables - set(TABLES):
        parser.error(f"no table is called {', '.join(sorted(unknown))}: use {', '.join(TABLES)}")
    rows = read_rows(results)
    if any(row["scale"] != scale.digest() for row in rows):
        parser.error(f"{folder} holds a study of another scale, with other data and nets: give another --out")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give 1 or more")
    runs, where = runs_of(scale), provenance()
    planned = {run.name: run for run in runs}
    done = {row["name"] for row in rows if row["name"] in planned and is_result_of(planned[row["name"]], row)}
    if options.latency:
        _time(results, folder, options.threads, done)
        return 0
    make_data(folder, scale)
    wanted = [run for run in runs if run.table in tables]
    # the runs whose nets these start from, and the dense nets below those
    needed = {run.start for run in wanted} | {planned[run.start].start for run in wanted if run.start}
    left = [run for run in runs if (run.table in tables or run.name in needed) and run.name not in done]
    failed = 0
    work = partial(execute, folder=folder, scale=scale)
    for run, row in in_turn(left[: options.most], done, work, options.jobs, options.threads):
        failed += "failed" in row
        what = {"name": run.name, "table": run.table, "label": run.label, "data": run.data, "seed": run.seed,
                "method": run.method, "epochs": run.epochs}  # fmt: skip
        add_row(results, what | row | {"scale": scale.digest(), "provenance": where})
        shown = row.get("failed") or f"{row['accuracy']['pruned']:.2%} at {row['macs']:.1%} of the MACs"
        print(f"{run.name}: {run.label}: {shown}, {row.get('seconds', 0)} s", flush=True)
    rest = len(left[options.most :]) if options.most is not None else 0
    print(f"left: {rest + failed or 'nothing'}")
    if options.docs is not None and done >= planned.keys():
        if left or not any(row["name"] == "latency" for row in rows):
            _time(results, folder, options.threads, done)
        write_report(results, options.docs)
    return int(failed > 0)


def _time(results: Path, folder: Path, threads: int, done: set[str]) -> None:
    """Time the nets of the table of methods, and add the latencies to the results as one row."""
    rows = read_rows(results)
    names = [row["name"] for row in rows if row.get("table") == "methods" and row["name"] in done]
    latency = timed(["shapes-0", *names], folder, threads, _BATCH)
    add_row(results, {"name": "latency", "scale": rows[-1]["scale"], "threads": threads, "batch": _BATCH,
                      "latency": latency, "provenance": provenance()})  # fmt: skip


def is_result_of(run: Run, row: dict[str, Any]) -> bool:
    """Whether a row is the result of a run as it is planned now.

    A row of channel pruning has the ``ratio`` that was found instead of the planned ``macs``.
    """
    if "failed" in row:
        return False
    wanted = {name: value for name, value in run.settings.items() if name != "macs"}
    had = {name: value for name, value in row["settings"].items() if name in wanted or "macs" not in run.settings}
    return list(run.epochs) == list(row["epochs"]) and wanted == had


if __name__ == "__main__":
    raise SystemExit(main())
