"""TensorBoard's event files stay after the pruning, and those of an interrupted one go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pruning.train.test_log import points
from trtkp.errors import InputError, JobError
from trtkp.pruning.run import PruneOptions, prune, training_folder
from trtkp.pruning.train.recipe import Recipe, Training

from .conftest import rows_of


def options(tensorboard: str, epochs: int = 3) -> PruneOptions:
    return PruneOptions(training=Training(finetune=Recipe(epochs=epochs, batch=30)), tensorboard=tensorboard)


def test_event_files_stay(work: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "Finetune 3/3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune("net.pt2", "p", method="vskp", options=options("runs"), data="data.npz", progress=interrupt)
    prune("net.pt2", "p", method="vskp", options=options("runs"), data="data.npz")
    assert not training_folder(Path("p")).exists()
    rows = rows_of("p/log.csv")
    assert len(rows) == 3
    for name in ("loss", "lr", "test_accuracy"):
        shown = points(Path("runs/finetune"), name)
        assert shown == [(int(row["epoch"]), pytest.approx(float(row[name]), abs=1e-4)) for row in rows]


def test_refused_before_anything_is_done(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(given: PruneOptions) -> str:
        with pytest.raises((InputError, JobError)) as error:
            prune("net.pt2", "p", method="vskp", options=given, data="data.npz")
        assert not Path("p").exists()
        assert not training_folder(Path("p")).exists()
        return str(error.value)

    assert "--tensorboard needs training; give --epochs, or leave it out" in refused(options("runs", epochs=0))
    assert "data.npz: exists and is not a directory; choose another --tensorboard" in refused(options("data.npz"))
    for folder in ("p", "p/runs", f"{training_folder(Path('p'))}/runs"):
        assert "lies in a directory that pruning replaces; choose another" in refused(options(folder))
    monkeypatch.setattr("trtkp.machine.packages.importable", lambda module: module != "tensorboard")
    assert refused(options("runs")) == "--tensorboard needs tensorboard; pip install 'trtkp[train]'"
    assert not Path("runs").exists()
