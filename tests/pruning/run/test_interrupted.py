"""A pruning that was interrupted goes on to what an unbroken one comes to; one that fails leaves what was there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trtkp.pruning.run.writing
from trtkp.errors import JobError
from trtkp.model import load_model
from trtkp.pruning.run import PruneOptions, prune
from trtkp.pruning.train.recipe import Preprocessing, Recipe, Training

from .conftest import rows_of


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("kep", "Regularise"), ("soks", "Regularise"), ("pptkp", "Regularise"), ("soks", "Finetune"),
        ("dppnet", "Prepare"), ("dppnet", "Regularise"), ("dppnet", "Finetune"), ("channels", "Finetune"),
    ],
)  # fmt: skip
def test_an_interrupted_pruning_goes_on(work: Path, method: str, stage: str) -> None:
    if method == "channels":
        pytest.importorskip("torch_pruning", reason="package torch-pruning is not installed")
    training = Training(
        data=Preprocessing(flip=True, pad=1),
        prepare=Recipe(epochs=3 if method == "dppnet" else 0, batch=30, lr=0.1),
        regularise=Recipe(epochs=3, batch=30, lr=0.1),
        finetune=Recipe(epochs=3, batch=30, lr=0.1, distil=0.5),
    )
    options = PruneOptions(training=training)
    settings = {"kep": {}, "dppnet": {"alpha": 0.004}}.get(method, {"ratio": 0.5})

    class StopError(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if phase == f"{stage} 3/3" and done == 2:
            raise StopError

    whole = prune("net.pt2", "whole", method=method, options=options, data="data.npz", **settings)
    with pytest.raises(StopError):
        prune("net.pt2", "p", method=method, options=options, data="data.npz", progress=stop, **settings)
    assert not Path("p").exists()
    phases: list[str] = []
    again = prune("net.pt2", "p", method=method, options=options, data="data.npz",
                  progress=lambda phase, *_: phases.append(phase), **settings)  # fmt: skip
    assert phases[0] == f"{stage} 3/3"
    one, other = (load_model(pruned.model).parameters() for pruned in (whole, again))
    for name in one:
        assert np.array_equal(one[name], other[name]), name
    assert whole.manifest.accuracy == again.manifest.accuracy
    for part in ("report", "left_dense", "warnings"):
        assert getattr(whole.manifest, part) == getattr(again.manifest, part)
    rows = [[row["stage"], row["epoch"], row["loss"]] for row in rows_of("p/log.csv")]
    assert rows == [[row["stage"], row["epoch"], row["loss"]] for row in rows_of("whole/log.csv")]


def test_a_failure_leaves_an_older_directory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prune("net.pt2", "p", method="kep")
    before = (first.path / "manifest.json").read_bytes()

    def fail(*_: object) -> None:
        raise JobError("disk on fire")

    monkeypatch.setattr(trtkp.pruning.run.writing, "save_index_sets", fail)
    with pytest.raises(JobError, match="disk on fire"):
        prune("net.pt2", "p", method="kep", n=2)
    assert (work / "p" / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in work.glob(".*")) == []
