"""TensorBoard's event files: where they are asked for, a run per stage, and in them once what is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtkp.errors import InputError
from trtkp.pruning.train.log import LOG_FILE, TrainingLog

pytest.importorskip("tensorboard", reason="package tensorboard is not installed")


def points(run: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def write(log: TrainingLog, stage: str, losses: dict[int, float]) -> None:
    log.begin(stage, min(losses))
    for epoch, loss in losses.items():
        log.add({"stage": stage, "epoch": epoch, "lr": "0.1", "loss": f"{loss}", "test_accuracy": ""})
    log.close()


def test_event_files_go_on_where_the_training_goes_on(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log", tmp_path / "runs")
    write(log, "regularise", {1: 9.0, 2: 8.0, 3: 7.0})
    write(log, "finetune", {1: 3.0, 2: 2.0, 3: 1.0})
    write(TrainingLog(tmp_path / "log", tmp_path / "runs"), "finetune", {2: 2.5, 3: 1.5})
    assert points(tmp_path / "runs" / "finetune", "loss") == [(1, 3.0), (2, 2.5), (3, 1.5)]
    assert points(tmp_path / "runs" / "finetune", "lr") == [(1, 0.1), (2, 0.1), (3, 0.1)]
    assert points(tmp_path / "runs" / "regularise", "loss") == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert [path.name for path in (tmp_path / "log").iterdir()] == [LOG_FILE]


def test_there_are_none_unless_asked_for(tmp_path: Path) -> None:
    write(TrainingLog(tmp_path), "finetune", {1: 3.0})
    assert [path.name for path in tmp_path.rglob("*")] == [LOG_FILE]


def test_a_place_that_cannot_hold_them(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = TrainingLog(tmp_path, tmp_path / "file" / "runs")
    with pytest.raises(InputError, match="event files cannot be written there") as error:
        log.begin("finetune", 1)
    assert "\n" not in str(error.value)
