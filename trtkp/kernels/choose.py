"""Which tactic runs a layer: the model orders and prunes, a timing decides where one can be made, a cache remembers."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from trtkp.kernels.layer import Task
from trtkp.kernels.prediction import Gpu, Layer, predict

__all__ = ["RUNS", "candidates", "choose", "forget"]

#: A tactic predicted to take this many times the best one's time is not timed.
HOPELESS = 3.0
#: Timed runs of a candidate, after one that is not.
RUNS = 7

#: Description and GPU to the tactic, and whether it was timed.
_CHOSEN: dict[tuple[bytes, str], tuple[str, bool]] = {}


def candidates(task: Task, gpu: Gpu, *, workspace: bool = True) -> list[str]:
    """The tactics that are worth a timing, best prediction first, then those that the model does not know.

    Where all that it knows is ``reference``, that comes last: it is slow. ``workspace`` False leaves out tactics that
    need one.
    """
    names = [
        name
        for name in task.library.tactics(task.desc)
        if workspace or task.library.workspace_bytes(task.desc, name) == 0
    ]
    layer = Layer.of(task.desc, *task.library.output_size(task.desc))
    found = {name: predict(name, layer, gpu) for name in names}
    seconds = {name: p.seconds for name, p in found.items() if p is not None}
    best = min(seconds.values(), default=0.0)
    known = sorted((name for name, time in seconds.items() if time <= HOPELESS * best), key=seconds.__getitem__)
    unknown = [name for name in names if found[name] is None]
    return unknown + known if known == ["reference"] else known + unknown


def choose(
    task: Task,
    gpu: Gpu,
    time_ms: Callable[[str], list[float]] | None,
    *,
    workspace: bool = True,
) -> str:
    """The tactic for a layer on a GPU.

    Args:
        task: the layer.
        gpu: where it runs.
        time_ms: tactic to milliseconds of `RUNS` runs; None where nothing may be timed now (a graph is captured). The
            prediction decides then, until a later call may time.
        workspace: whether the caller can give one.
    """
    key = (bytes(task.desc) + bytes([workspace]), gpu.name)
    found = _CHOSEN.get(key)
    if found is not None and (found[1] or time_ms is None):
        return found[0]
    names = candidates(task, gpu, workspace=workspace)
    if time_ms is None or len(names) == 1:
        _CHOSEN[key] = names[0], len(names) == 1
    else:
        times = {name: median(time_ms(name)) for name in names}
        _CHOSEN[key] = min(times, key=times.__getitem__), True
    return _CHOSEN[key][0]


def forget() -> None:
    """Drop every choice, as after a change of the library."""
    _CHOSEN.clear()
