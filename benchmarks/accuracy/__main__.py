"""The study of the methods' accuracy: every run that is not done yet, then the tables of docs/accuracy.md.

    python -m benchmarks.accuracy --out study --jobs 2              # again, until it says "left: nothing"
    python -m benchmarks.accuracy --out study --tables groups,two-four
    python -m benchmarks.accuracy --out study --latency             # on a quiet machine, when the runs are done
    python -m benchmarks.accuracy.report study/results.jsonl docs   # docs/accuracy.md and its plots

Each run adds a line to ``results.jsonl`` in the folder; a run that was killed goes on from its last checkpoint. Every
run is seeded. ``--scale smoke`` is for the tests.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy.execute import execute, make_data, timed
from benchmarks.accuracy.plan import SCALES, TABLES, Run, runs_of
from benchmarks.accuracy.schedule import in_turn
from benchmarks.provenance import provenance

__all__ = ["is_of", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run what is left; 0 when nothing is, 1 when something failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--most", type=int, help="runs at most")
    parser.add_argument("--latency", action="store_true", help="time the engines of the table of methods")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the threads")
    options = parser.parse_args(arguments)
    scale, folder, tables = SCALES[options.scale], options.out, set(options.tables.split(","))
    (folder / "nets").mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    if unknown := tables - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}: there are {', '.join(TABLES)}")
    rows = read_rows(results)
    if any(row["scale"] != scale.digest() for row in rows):
        parser.error(f"{folder} holds a study of another scale: its data and nets are others")
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least one")
    runs, where = runs_of(scale), provenance()
    planned = {run.name: run for run in runs}
    done = {row["name"] for row in rows if row["name"] in planned and is_of(planned[row["name"]], row)}
    if options.latency:
        names = [row["name"] for row in rows if row.get("table") == "methods" and row["name"] in done]
        latency = timed(["shapes-0", *names], folder, options.threads, 8)
        add_row(results, {"name": "latency", "scale": scale.digest(), "threads": options.threads, "batch": 8,
                          "latency": latency, "provenance": where})  # fmt: skip
        return 0
    make_data(folder, scale)
    wanted = [run for run in runs if run.table in tables]
    # and what they start from
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
    return int(failed > 0)


def is_of(run: Run, row: dict[str, Any]) -> bool:
    """Whether a row is of this run, as it is planned now; for ``macs`` it has the ratio that was found."""
    if "failed" in row:
        return False
    wanted = {name: value for name, value in run.settings.items() if name != "macs"}
    had = {name: value for name, value in row["settings"].items() if name in wanted or "macs" not in run.settings}
    return list(run.epochs) == list(row["epochs"]) and wanted == had


def read_rows(path: Path, scale: str | None = None) -> list[dict[str, Any]]:
    """The rows of a result file, the last of each name, of one scale where that is given."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off when the process was killed
        if scale is None or row["scale"] == scale:
            rows[row["name"]] = row
    return list(rows.values())


def add_row(path: Path, row: dict[str, Any]) -> None:
    """One line at the end of a result file, on a line of its own whatever was cut off before it."""
    broken = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if broken else "") + json.dumps(row) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
