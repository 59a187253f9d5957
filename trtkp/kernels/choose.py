"""The choice of a tactic for a layer: `prediction` ranks the tactics, a timing decides, and the choice is cached."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from trtkp.kernels.layer import Task
from trtkp.kernels.prediction import Gpu, Layer, predict

__all__ = ["RUNS", "candidates", "choose"]

#: Tactics that are predicted to take more than this many times the best prediction are not timed. The factor is large
#: because the model is unverified.
HOPELESS = 3.0
#: Timed runs of each candidate, after one untimed run. The median of 7 decides.
RUNS = 7

#: Description, workspace and GPU to the chosen tactic, and whether it was timed.
_CHOSEN: dict[tuple[bytes, str], tuple[str, bool]] = {}


def candidates(task: Task, gpu: Gpu, *, workspace: bool = True) -> list[str]:
    """The tactics that are worth timing: best prediction first, then those that the model cannot predict.

    If ``reference`` is the only tactic with a prediction, it comes last, because it is slower than any other.

    Args:
        task: the layer.
        gpu: the GPU to predict for.
        workspace: False leaves out tactics that need a workspace.
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
    """The tactic for a layer on a GPU. Each layer is timed once per process.

    Args:
        task: the layer.
        gpu: the GPU that runs it.
        time_ms: function from a tactic to the milliseconds of `RUNS` runs. None if nothing may be timed now, as while a
            CUDA graph is captured. The prediction then decides, until a later call may time.
        workspace: whether the caller can provide a workspace.
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
