"""The file of the timing cache, and whatever may lie in its place."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tests.engine.trt import recording_tensorrt
from tests.machine.test_caches import ODD
from trtkp.engine.trt import tactics
from trtkp.engine.trt.tactics import TimingCacheFile, cache_name

NAME = cache_name(recording_tensorrt)


def build(folder: Path) -> list[str]:
    """What a build does with its cache; returns the warnings."""
    said: list[str] = []
    config = recording_tensorrt._Config()
    cache = TimingCacheFile(recording_tensorrt, config, folder, lambda severity, text: said.append(text))
    assert config.get_timing_cache() is not None
    cache.save()
    return said


@pytest.mark.parametrize("kind", [*ODD, "garbage"])
def test_odd_files_are_set_aside_and_said_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "_MOST_BYTES", 100)
    file = tmp_path / NAME
    if kind == "garbage":
        file.write_bytes(b"\xff\x00")
    else:
        ODD[kind](file)
    (said,) = build(tmp_path)
    assert f"{file} cannot be used" in said
    assert f"set aside as {NAME}.bad" in said
    assert file.read_bytes() == b"timed"
    assert os.path.lexists(f"{file}.bad")
    assert build(tmp_path) == []


def test_times_of_two_builds_are_merged(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"of another build")
    assert build(tmp_path) == []
    assert (tmp_path / NAME).read_bytes().split() == [b"another", b"build", b"of", b"timed"]


def test_stuck_lock_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "_LOCK_S", 0.2)
    start = time.perf_counter()
    with FileLock(tmp_path / f"{NAME}.lock"):
        (said,) = build(tmp_path)
    assert time.perf_counter() - start < 30  # whatever the machine does: not forever
    assert "its lock was held for" in said
    assert (tmp_path / NAME).read_bytes() == b"timed"


@pytest.mark.parametrize("kind", ["directory", "fifo", "endless"])
def test_odd_lock_is_no_obstacle(kind: str, tmp_path: Path) -> None:
    ODD[kind](tmp_path / f"{NAME}.lock")
    said = build(tmp_path)
    assert all("cannot be locked" in text for text in said)
    assert len(said) <= 1
    assert (tmp_path / NAME).read_bytes() == b"timed"


@pytest.mark.parametrize("kind", ["large", "fifo", "endless"])
def test_folder_that_is_none(kind: str, tmp_path: Path) -> None:
    ODD[kind](tmp_path / "folder")
    said = build(tmp_path / "folder")
    assert 1 <= len(said) <= 2
    assert all("cannot be" in text for text in said)
