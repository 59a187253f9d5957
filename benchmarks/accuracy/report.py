"""Make the study's page, its tables and its plots, from the result file.

python -m benchmarks.accuracy.report study/results.jsonl docs/methods    # accuracy.md and its plots
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.plan import SCALES, runs_of
from benchmarks.accuracy.results import read_rows
from benchmarks.scatter import Axis, scatter

__all__ = ["document", "plot", "write_report"]

Row = dict[str, Any]

_INTRODUCTION = """# Accuracy of the methods

**Data and net.** Ten classes of generated shapes, 32 x 32 in colour (`examples/shapes_data.py`), with enough noise that
the dense net stays well below 100 %. The net is a residual CNN of five 3x3 convolutions (`examples/nets/shapes.py`). It
has 0.17 M parameters and 11 M MACs, fewer than a ResNet-20 (0.27 M and 41 M), so that all trainings together take
hours, not days.

**What is pruned.** Only the 3x3 convolutions behind the stem, with `uniform` allocation, so that rows of one ratio have
about equal MACs. The MACs are given for the whole net. They are not exactly equal: channel pruning takes the first
ratio that leaves no more MACs, and PPT-KP also removes what its penalty has made zero beyond the ratio. DPPNet has no
ratio: what it keeps follows from its threshold and the data, and where it keeps everything it costs more than the dense
net.

**Training.** Unless a row says otherwise, every row of a table had the same number of epochs after the dense net's
training. DPPNet had its first stage in addition.

**PPT-KP here is trained with a proximal group-lasso step**, not with the sub-gradient of the L1 penalty that the
paper's abstract describes. Its breakpoints follow from the target ratio, so that kernels which are to stay are not
pushed. Penalties are stronger than those of the recipes because trainings are shorter.

**SOKS here is chosen by magnitude.** The search never brought a coefficient under the threshold, so the ratio decides:
the positions whose weights, with the coefficients folded in, have the largest mean magnitude stay.

**What this can tell**: how methods and granularities rank under one short training, on a net that has some slack.
**What it cannot tell**: the published accuracies. Those are of larger nets on CIFAR and ImageNet, after hundreds of
epochs. Differences below the spread over the seeds mean nothing, and rows of one seed have no spread to compare with.

**How settings were chosen**, always by the same test images: the strengths of the penalties in about 25 trainings of a
seed that is in no table; that single kernels are pushed before blocks, in 3 trainings of seed 0; that with blocks of
channels they are not, and every list keeps as many, in 6 trainings of the table's own seeds.
"""


def write_report(results: Path, folder: Path) -> None:
    """Write ``accuracy.md`` and the plots to a folder."""
    rows = read_rows(results)
    if len({row["scale"] for row in rows}) > 1:
        last = rows[-1]["scale"]
        rows = [row for row in rows if row["scale"] == last]
    (folder / "accuracy.md").write_text(document(rows), encoding="utf-8")
    points = [(row["macs"], _accuracy(row), row["method"]) for row in _of(rows, "methods")]
    (folder / "accuracy-macs.svg").write_text(plot(points, "share of the MACs"), encoding="utf-8")
    if latency := _latency(rows):
        dense = latency["shapes-0"]["median_ms"]
        points = [
            (latency[row["name"]]["median_ms"] / dense, _accuracy(row), row["method"])
            for row in _of(rows, "methods")
            if row["name"] in latency
        ]
        (folder / "accuracy-latency.svg").write_text(plot(points, "share of the dense latency"), encoding="utf-8")


def document(rows: Sequence[Row]) -> str:
    """The whole page; rows in the order of the plan, whenever they were done."""
    place = {run.name: number for number, run in enumerate(runs_of(SCALES["full"]))}
    rows = sorted(rows, key=lambda row: place.get(row["name"], len(place)))
    parts = [
        _INTRODUCTION,
        _seeds_table(
            rows, "groups", "What lists of a group cost, and what training that knows of them wins back", _GROUPS
        ),
        _won_back(rows),
        _seeds_table(rows, "two-four", "2:4 inside the lists", _TWO_FOUR),
        _seeds_table(rows, "searched", "SOKS: searched shapes against fixed ones", _SEARCHED),
        _searched_or_fixed(rows),
        _methods_table(rows, "methods", "Every method, two ratios, two granularities"),
        "![Accuracy against MACs](accuracy-macs.svg)\n" if _of(rows, "methods") else "",
        "![Accuracy against latency](accuracy-latency.svg)\n" if _latency(rows) else "",
        _methods_table(rows, "digits", "The same on scikit-learn's digits"),
        _failures(rows),
        _measured(rows),
    ]
    return "\n".join(part for part in parts if part)


def _measured(rows: Sequence[Row]) -> str:
    where = rows[-1]["provenance"]
    commits = list(dict.fromkeys(row["provenance"]["commit"] for row in rows))
    hours = sum(row.get("seconds", 0.0) for row in rows) / 3600
    return (
        f"Measured with `{where['command']}` on {where['cpu']}, PyTorch {where['libraries']['torch']}, "
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}, {where['date']}; "
        f"the runs took {hours:.1f} hours in total.\n"
    )


_LATENCY = """
Latency: ONNX Runtime, fp32, batch 8, two threads, median of 1000 runs in turn in one process. The dense net takes
{dense:.2f} ms, so this holds for a net of that size only. [Performance](performance.md) has larger nets."""
#: Methods and suffixes of the rows of one group size.
_KINDS = (("l1", ""), ("pptkp", " after"), ("pptkp", " aware"))
_GROUPS = """`l1` and `pptkp` with 7 of 8 kernels removed, with lists of one filter and of groups of filters.

- `after`: trained with PPT-KP's penalty on single kernels, groups chosen afterwards.
- `aware`: after three fifths of those epochs the filters are clustered by the norms that the penalty has made, and
  whole blocks are pushed.
- `16x8`: lists of 16 filters that take channels in blocks of 8, as the tensor core kernels read them, with as many
  blocks in every list. Here `aware` pushes blocks from the first epoch. With so few blocks a layer keeps a little more
  of its MACs.
- `mass`: the share of the magnitudes of the pruned layers that is kept, of the net that a row starts from. For `pptkp
  1` and `after`, that is the net that the penalty has made.

`l1` has the same number of kernels in every filter. `pptkp` has one threshold in a layer and keeps at least one kernel
of every filter, so it keeps a little more of the MACs.
"""
_TWO_FOUR = """V-SKP's lists with and without 2:4 inside; channel pruning with the ratio that leaves as many MACs; and
lists that PPT-KP's proximal step trains, in as many epochs. `mass` is the share of the magnitudes of the pruned layers
that is kept, before any fine-tune.
"""
_SEARCHED = """Four positions of nine, four filter groups: after a search with coefficient matrices, by the magnitudes
of the dense net, or fixed. In the second row the search comes on top of the others' epochs, as the authors train the
shapes that they found. The last row has as many epochs as that. All rows but the fixed shapes are chosen by magnitude
(see above).
"""


def _seeds_table(rows: Sequence[Row], table: str, title: str, text: str) -> str:
    found = [row for row in _of(rows, table) if row["label"] != "regularised"]
    if not found:
        return ""
    dense = mean(_accuracy(row) for row in _of(rows, "dense") if row["data"] == "shapes")
    longer = [row for row in _of(rows, "groups") if row["method"] == "none"]
    references = {row["seed"]: _accuracy(row) for row in longer}
    lines = [f"## {title}", "", text, f"Dense: {dense:.2%}, the mean of its seeds; {_trained_on(references)}.", ""]
    lines += ["| net | MACs | mass | before tuning | accuracy | least | most | lost, points |", "|---" * 8 + "|"]
    for label in dict.fromkeys(row["label"] for row in found):
        of_label = [row for row in found if row["label"] == label]
        accuracies = [_accuracy(row) for row in of_label]
        own = [references[row["seed"]] for row in of_label if row["seed"] in references]
        masses = [row["mass"] for row in of_label if row["mass"] is not None]
        lines.append(
            f"| {label} | {mean(row['macs'] for row in of_label):.1%} | {f'{mean(masses):.1%}' if masses else '-'} "
            f"| {mean(row['accuracy']['one-shot'] for row in of_label):.1%} | {mean(accuracies):.2%} "
            f"| {min(accuracies):.2%} | {max(accuracies):.2%} | {_lost(own, accuracies)} |"
        )
    seeds = len({row["seed"] for row in found})
    return "\n".join([*lines, "", f"{seeds} seed{'s' if seeds > 1 else ''}.", ""])


def _means(rows: Sequence[Row], table: str) -> dict[str, float]:
    """Mean accuracy over the seeds, by label, for the labels that have all seeds."""
    found: dict[str, list[float]] = {}
    for row in _of(rows, table):
        found.setdefault(row["label"], []).append(_accuracy(row))
    seeds = max(map(len, found.values()), default=0)
    return {label: mean(accuracies) for label, accuracies in found.items() if len(accuracies) == seeds}


def _won_back(rows: Sequence[Row]) -> str:
    """Compare PPT-KP with L1, and training with the groups with training before them, from the table of groups."""
    means = _means(rows, "groups")
    groups = [label.split()[1] for label in means if label.endswith(" aware")]
    if not {"l1 1", "pptkp 1"} <= means.keys():
        return ""
    gain = 100 * (means["pptkp 1"] - means["l1 1"])
    lines = [
        f"One-filter lists: PPT-KP loses {abs(gain):.2f} points {'less' if gain > 0 else 'more'} than plain L1.",
        "",
        "| filters a list | l1 | pptkp, after | pptkp, aware | won back, points | of the loss to one-filter lists |",
        "|---|---|---|---|---|---|",
    ]
    for group in groups:
        if not {f"{kind} {group}{when}" for kind, when in _KINDS} <= means.keys():
            continue
        plain, after, aware = (means[f"{kind} {group}{when}"] for kind, when in _KINDS)
        loss = means["pptkp 1"] - after
        share = f"{(aware - after) / loss:.0%}" if loss > 0 else "-"
        lines.append(f"| {group} | {plain:.2%} | {after:.2%} | {aware:.2%} | {100 * (aware - after):.2f} | {share} |")
    return "\n".join([*lines, ""])


def _searched_or_fixed(rows: Sequence[Row]) -> str:
    """Compare searched shapes with the better fixed ones, at equal epochs in all and at equal epochs with masks."""
    means = _means(rows, "searched")
    longer = {label: accuracy for label, accuracy in means.items() if "as long" in label}
    parts = []
    for among in ({label: accuracy for label, accuracy in means.items() if label not in longer}, longer):
        fixed = [accuracy for label, accuracy in among.items() if label.startswith("ASK")]
        for label, accuracy in among.items():
            if fixed and not label.startswith("ASK"):
                gain = 100 * (accuracy - max(fixed))
                parts.append(f"{label}: {abs(gain):.2f} points {'above' if gain > 0 else 'below'}")
    below = [row["report"]["below_threshold"] for row in _of(rows, "searched") if row.get("report")]
    if parts and below:
        parts[-1] += (
            f". Of the coefficients, {mean(below):.1%} came below the threshold, a twentieth of their matrix's largest."
            " So positions are removed as abruptly as by magnitude alone, and with as many epochs in all, half as many "
            "are left for the fine-tune"
        )
    return f"Against the better fixed shapes of as many epochs in all: {'; '.join(parts)}.\n" if parts else ""


def _trained_on(references: dict[int, float]) -> str:
    found = f"{mean(references.values()):.2%}" if references else "not measured"
    return f"trained on for as long as the others {found}, from which lost points are counted"


def _lost(own: Sequence[float], accuracies: Sequence[float]) -> str:
    return f"{100 * (mean(own) - mean(accuracies)):.2f}" if len(own) == len(accuracies) else "-"


def _methods_table(rows: Sequence[Row], table: str, title: str) -> str:
    found, latency = _of(rows, table), _latency(rows)
    if not found:
        return ""
    plain = [*_of(rows, "dense"), *(row for row in _of(rows, "groups") if row["method"] == "none")]
    dense = [row for row in plain if (row["data"], row["seed"]) == (found[0]["data"], found[0]["seed"])]
    timed = latency["shapes-0"]["median_ms"] if latency and table == "methods" else None
    lines = [f"## {title}", ""]
    head = ["net", "MACs", "parameters", "mass", "before tuning", "accuracy"] + (["latency, of dense"] if timed else [])
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in [*dense, *found]:
        mass = f"{row['mass']:.1%}" if row.get("mass") is not None else "-"
        before = f"{row['accuracy']['one-shot']:.1%}" if row["table"] != "dense" else "-"
        cells = [row["label"], f"{row['macs']:.1%}", f"{row['params']:.1%}", mass, before, f"{_accuracy(row):.2%}"]
        if timed:
            cells.append(f"{latency[row['name']]['median_ms'] / timed:.2f}" if row["name"] in latency else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "One seed.", *([_LATENCY.format(dense=timed)] if timed else []), ""])


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if "failed" in row]
    return (
        "\n".join(["## Failed", "", *(f"- {row['table']}, {row['label']}: {row['failed']}" for row in failed), ""])
        if failed
        else ""
    )


def _of(rows: Sequence[Row], table: str) -> list[Row]:
    return [row for row in rows if row.get("table") == table and "failed" not in row]


def _accuracy(row: Row) -> float:
    return float(row["accuracy"]["pruned"])


def _latency(rows: Sequence[Row]) -> dict[str, Any]:
    return next((row["latency"] for row in rows if row["name"] == "latency"), {})


def plot(points: Sequence[tuple[float, float, str]], across: str) -> str:
    """Plot accuracy against a share, with one colour per method. The axis leaves out accuracies that are outliers."""
    accuracies = sorted(accuracy for _, accuracy, _ in points) or [0.0, 1.0]
    lower, upper = (accuracies[len(accuracies) * part // 4] for part in (1, 3))
    low = floor(100 * max(accuracies[0], lower - 1.5 * (upper - lower)))
    high = max(ceil(100 * accuracies[-1]), low + 5)
    widest = min(max([1.0, *(share for share, _, _ in points)]), 1.2)
    series: dict[str, list[tuple[float, float]]] = {}
    for share, accuracy, method in points:
        series.setdefault(method, []).append((share, accuracy))
    return scatter(
        f"Accuracy against the {across}, generated shapes", series,
        Axis(0, widest, [step / 5 for step in range(6)], ".0%"),
        Axis(low / 100, high / 100, [part / 100 for part in range(low, high + 1)], ".0%"),
    )  # fmt: skip


if __name__ == "__main__":
    write_report(Path(sys.argv[1]), Path(sys.argv[2]))
