"""Times of layers on disk: found again, never wrong, never in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.machine.test_caches import ODD
from trtkp.machine.timing import Timing
from trtkp.plan import cache as cache_module
from trtkp.plan.cache import DIRECTORY_VARIABLE, TimingCache

TIMES = {"a": Timing(1.0, 0.9, 1.2, 30), "b": Timing(2.0, 1.9, 2.5, 30)}


def test_found_again(tmp_path: Path) -> None:
    TimingCache(tmp_path / "new").put(TIMES, 2)
    again = TimingCache(tmp_path / "new")
    assert again.get(["b", "a"], 2) == TIMES
    assert again.problems == []
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".json"]


def test_other_threads_forms_or_machines_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TimingCache(tmp_path).put(TIMES, 2)
    assert TimingCache(tmp_path).get(["a", "b"], 1) is None
    assert TimingCache(tmp_path).get(["a"], 2) is None
    monkeypatch.setattr(cache_module, "machine", lambda: ("another CPU", 2, "1.0"))
    assert TimingCache(tmp_path).get(["a", "b"], 2) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"{", b"[]", b'{"a": 1, "b": 2}', b'{"a": {"median_ms": 1}}',
        json.dumps({"a": {"median_ms": 1, "p10_ms": 1, "p90_ms": 1, "runs": 1}}).encode(),
        json.dumps({n: {"median_ms": -1, "p10_ms": 1, "p90_ms": 1, "runs": 1} for n in "ab"}).encode(),
        json.dumps({n: {"median_ms": "x", "p10_ms": 1, "p90_ms": 1, "runs": 1} for n in "ab"}).encode(),
        json.dumps({n: {"median_ms": float("inf"), "p10_ms": 1, "p90_ms": 1, "runs": 1} for n in "ab"}).encode(),
        json.dumps({n: {"median_ms": 1, "p10_ms": 1, "p90_ms": float("inf"), "runs": 1} for n in "ab"}).encode(),
        json.dumps({n: {"median_ms": 1, "p10_ms": 1, "p90_ms": 1, "runs": float("inf")} for n in "ab"}).encode(),
        b"[" * 200_000, b"1" * 10_000, b" " * (2 << 20),
    ],
)  # fmt: skip
def test_a_damaged_file_is_left_out_and_reported(tmp_path: Path, content: bytes) -> None:
    TimingCache(tmp_path).put(TIMES, None)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    cache = TimingCache(tmp_path)
    assert cache.get(TIMES, None) is None
    done = f"set aside as {file.name}.bad"
    assert cache.problems == [f"timing cache: {file} cannot be used and was {done}, its layer is timed again"]
    assert not file.exists()
    cache.put(TIMES, None)
    assert TimingCache(tmp_path).get(TIMES, None) == TIMES


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_is_neither_read_nor_waited_for(tmp_path: Path, kind: str) -> None:
    TimingCache(tmp_path).put(TIMES, None)
    (file,) = tmp_path.iterdir()
    file.unlink()
    ODD[kind](file)
    cache = TimingCache(tmp_path)
    assert cache.get(TIMES, None) is None
    assert cache.get(TIMES, None) is None
    assert len(cache.problems) == 1
    cache.put(TIMES, None)
    assert TimingCache(tmp_path).get(TIMES, None) == TIMES


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file")
    cache.put(TIMES, 2)
    cache.put({"a": TIMES["a"]}, 2)
    assert cache.get(TIMES, 2) == TIMES  # kept in memory
    assert len(cache.problems) == 1
    assert str(tmp_path / "file") in cache.problems[0]


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_ENTRIES", 8)
    cache = TimingCache(tmp_path)
    for number in range(20):
        cache.put({str(number): TIMES["a"]}, 1)
        for file in tmp_path.iterdir():
            os.utime(file, (file.stat().st_mtime - 10,) * 2)
        assert len(list(tmp_path.iterdir())) <= 8
    assert TimingCache(tmp_path).get(["19"], 1) is not None
    assert TimingCache(tmp_path).get(["0"], 1) is None


def test_the_directory_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "moved"))
    assert TimingCache().directory == tmp_path / "moved"
    monkeypatch.delenv(DIRECTORY_VARIABLE)
    usual = TimingCache().directory
    assert usual is not None
    assert usual.parts[-2:] == ("trtkp", "timings")


def test_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = TimingCache.in_memory()
    cache.put(TIMES, 1)
    assert cache.get(TIMES, 1) == TIMES
    assert list(tmp_path.iterdir()) == []
