"""What a plugin offers and launches over a profile, which tactic a node pins, and what the calls cost the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.emulation.cases import NUMBERS
from tests.emulation.programs import run

from .cases import CHAR, Field, Layer, listed_layer
from .test_plugins import changed, lines, play

MIB = 1 << 20
NAMES = {number: name for name, number in NUMBERS.items()}


def wide_layer(batch: int, typical: int) -> Layer:
    """3x3 over 128 channels of 12 x 12 pixels, fp16, one list of all taps: for batches 1 to ``batch``."""
    inputs = (
        np.zeros((batch, 128, 12, 12), np.float16),
        np.zeros((128, 9 * 128), np.float16),
        np.arange(9, dtype=np.int32)[None],
        np.zeros(128, np.int32),
        np.arange(128, dtype=np.int32),
        np.zeros(128, np.float16),
    )
    fields = [("strides", [1, 1]), ("pads", [1] * 4), ("dilations", [1, 1]), ("weight_shape", [128, 128, 3, 3]),
              ("group", [1]), ("list_block", [8])]  # fmt: skip
    made = tuple(Field.of(name, values) for name, values in fields)
    return Layer("StripeConv", made, inputs, (batch, 128, 12, 12), "float16", (f"typical {typical}",))


def stubbed(layer: Layer, program: Path, folder: Path) -> str:
    """What stub_host prints."""
    layer.write(folder / "case")
    done = run(program, "calls", folder / "case")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def offered(output: str) -> list[str]:
    """The names of the tactics that are offered; TensorRT's numbers are one higher than ours."""
    return [NAMES[int(number) - 1] for number in lines(output, "offered")]


def launched(output: str) -> dict[tuple[str, int], tuple[str, int]]:
    """Tactic and batch to the launcher and the number of splits."""
    words = (line.split() for line in lines(output, "launched"))
    return {(NAMES[int(number) - 1], int(batch)): (name, int(splits)) for number, batch, name, splits in words}


def test_a_wide_profile_keeps_split_tactics(stub_host: Path, tmp_path: Path) -> None:
    """What counts is the workspace at the typical batch, 1; at 64, a split in 16 would need 75 MB and is not split."""
    narrow = stubbed(wide_layer(1, 1), stub_host, tmp_path)
    wide = stubbed(wide_layer(64, 1), stub_host, tmp_path)
    splits = [name for name in offered(narrow) if "split" in name]
    assert {"mma_64x64_split4", "mma_64x64_split16", "mma_64x64_k64_split16"} <= set(splits)
    assert offered(wide) == offered(narrow)
    assert int(lines(wide, "workspace")[0]) == 64 * MIB
    launches = launched(wide)
    assert launches["mma_64x64_split16", 1] == ("launchMma64x64", 16)
    assert launches["mma_64x64_split16", 64] == ("launchMma64x64", 1)
    assert launches["mma_64x64_k64_split16", 64] == ("launchMma64x64K64", 1)
    assert launches["mma_64x64_split4", 64] == ("launchMma64x64", 4)


def test_a_split_that_the_typical_batch_cannot_afford_is_left_out(stub_host: Path, tmp_path: Path) -> None:
    wide = offered(stubbed(wide_layer(64, 64), stub_host, tmp_path))
    assert "mma_64x64_split4" in wide
    assert [name for name in wide if name.endswith("_split16")] == []


def pinned(layer: Layer, text: str) -> Layer:
    """With a field ``tactic``."""
    return changed(layer, "tactic", Field("tactic", CHAR, len(text), text.encode()))


@pytest.mark.parametrize("end", ["", "\0"])
def test_a_pinned_tactic_is_offered_alone(end: str, plugin_host: Path, tmp_path: Path) -> None:
    """By name, for the GPU at hand; the engine keeps it, and so do timing cache and metadata."""
    layer, _ = listed_layer(0, base="StripeConv", dtype="float16", blocks=True)
    free = lines(play(replace(layer, lines=("spoil stop",)), plugin_host, tmp_path), "offered")
    pins = "sm_80=mma_128x64;sm_90=mma_64x32"
    for capability, want in ((90, ["mma_64x32"]), (80, ["mma_128x64"]), (120, None), (0, None)):
        spoilt = replace(pinned(layer, pins + end), lines=("spoil stop", f"capability {capability}"))
        output = play(spoilt, plugin_host, tmp_path)
        assert offered(output) == (want or [NAMES[int(number) - 1] for number in free])
        assert f" tactic={pins} library=" in lines(output, "timing")[0]
        assert lines(output, "metadata")[0].endswith(f" tactic={pins}")
        verbose = [line for line in lines(output, "log") if line.startswith("4 ")]
        assert len(verbose) == 2  # of the network and of the engine
        assert all(line.endswith(f" tactic={pins}") for line in verbose)
        assert [line for line in lines(output, "log") if line[0] in "123"] == []


@pytest.mark.parametrize("name", ["simt_64x32", "of_another_library"])
def test_a_pinned_tactic_that_cannot_be_used_is_said_once(name: str, plugin_host: Path, tmp_path: Path) -> None:
    layer, _ = listed_layer(0, base="StripeConv", dtype="float16", blocks=True)
    stop = ("spoil stop",)
    free = play(replace(layer, lines=stop), plugin_host, tmp_path)
    output = play(replace(pinned(layer, f"sm_90={name}"), lines=stop), plugin_host, tmp_path)
    assert offered(output) == offered(free)
    told = f"2 [trtkp] {layer.op}: the pinned tactic {name} does not compute every shape of the profile, so TensorRT"
    assert [line for line in lines(output, "log") if line[0] in "123"] == [f"{told} chooses another"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mma_64x32", "tactic has 'mma_64x32', which is not of the form sm_90=NAME"),
        ("sm_=mma_64x32", "tactic has 'sm_=mma_64x32', which"),
        ("sm_9x=mma_64x32", "tactic has 'sm_9x=mma_64x32', which"),
        ("sm_99999999999=mma", "tactic has 'sm_99999999999=mma', which"),
        ("sm_90=", "tactic has 'sm_90=', which"),
        ("sm_90=a b", "tactic has 'sm_90=a b', which"),
        ("sm_90=a;;sm_80=b", "tactic has '', which"),
        ("sm_90=a;sm_90=a", "tactic names sm_90 twice"),
    ],
)
def test_a_bad_pin_is_refused(text: str, message: str, plugin_host: Path, tmp_path: Path) -> None:
    layer, _ = listed_layer(0, base="StripeConv", dtype="float16", blocks=True)
    output = play(pinned(layer, text), plugin_host, tmp_path, "create")
    assert output.endswith("refused\n")
    assert message in output


def test_enqueue_allocates_nothing(stub_host: Path, tmp_path: Path) -> None:
    """Nor where it finds anew what to launch, because shapes are not those of the last onShapeChange."""
    assert int(lines(stubbed(wide_layer(64, 1), stub_host, tmp_path), "enqueue")[0].split()[1]) == 0


@pytest.mark.slow
def test_contexts_of_several_threads(threaded_host: Path, tmp_path: Path) -> None:
    """Under ThreadSanitizer, which ends the program with another status where it finds a race."""
    wide_layer(4, 1).write(tmp_path / "case")
    done = run(threaded_host, "threads", tmp_path / "case")
    if "ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run here: the kernel randomises addresses too widely (vm.mmap_rnd_bits)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "threads done" in done.stdout


@pytest.mark.serial
def test_time_of_calls(stub_host: Path, tmp_path: Path) -> None:
    """onShapeChange takes less than 2 us on a core of 2 GHz or more; the bounds allow for one ten times as slow.

    When it formatted messages that nobody needed, it took 60 times as long as enqueue; now it takes twice as long.
    """
    output = stubbed(wide_layer(64, 1), stub_host, tmp_path)
    shape, enqueue = (int(lines(output, name)[0].split()[0]) for name in ("onShapeChange", "enqueue"))
    assert shape < min(20_000, 10 * enqueue)
    assert enqueue < 20_000
