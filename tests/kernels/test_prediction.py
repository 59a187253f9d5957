"""The tactic model: bounds are respected, orderings are sane, waves have tails, and counts are those of the kernels."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest

from trtkp.errors import InputError
from trtkp.kernels.capi import ConvDesc, Library
from trtkp.kernels.prediction import GPUS, Gpu, Layer, counts_of, gpu_like, known_gpu, occupancy, order, predict

TILES = ["mma_128x128", "mma_128x64", "mma_64x64", "mma_64x32"]
SPLITS = ["mma_64x64_split4", "mma_64x64_split16", "mma_64x32_split4"]


def layer(batch: int = 32, size: int = 28, channels: int = 256, filters: int = 256, taps: int = 9, density: float = 1.0,
          groups: int = 1) -> Layer:  # fmt: skip
    """A 3x3 layer of ResNet's kind."""
    pixels = batch * size * size
    columns = ceil(channels * density / 8) * 8 * taps
    return Layer(pixels, filters, columns, groups, pixels * channels, pixels * filters, filters, 2)


def seconds(tactic: str, work: Layer, gpu: Gpu) -> float:
    found = predict(tactic, work, gpu)
    assert found is not None
    return found.seconds


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_no_prediction_beats_a_bound(gpu: Gpu) -> None:
    """Neither the tensor cores' rate nor the memory's, whatever the layer."""
    for work in (layer(), layer(1, 7), layer(256, 56, 64, 64), layer(taps=1), layer(density=0.25), layer(groups=8)):
        for name in ["reference", *TILES, *SPLITS]:
            found = predict(name, work, gpu)
            assert found is not None
            rate = gpu.macs_per_cycle * gpu.multiprocessors * gpu.clock_hz
            assert found.seconds >= work.macs / rate
            assert found.seconds >= work.bytes / gpu.bandwidth
            assert found.bound in ("arithmetic", "issue", "cache", "latency", "memory", "launch")
            assert not found.verified


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_orderings(gpu: Gpu) -> None:
    large, small = layer(32, 56, 256, 256), layer(1, 7, 512, 512)
    names = ["reference", *TILES, *SPLITS]
    by_large = [p.tactic for p in order(names, large, gpu)]
    assert by_large[0] in TILES[:3]
    assert by_large[-1] == "reference"
    by_small = [p.tactic for p in order(names, small, gpu)]
    if gpu.multiprocessors > 100:  # 49 pixels by 512 rows are 8 tiles of 64 x 64: a split fills more of the GPU
        assert by_small[0] in SPLITS
    assert by_small[0] != "mma_128x128"
    half = [p.seconds for p in order(TILES, replace(large, columns=large.columns // 2), gpu)]
    assert half[0] < order(TILES, large, gpu)[0].seconds


def test_grouped_lists_cost_what_they_walk() -> None:
    """Eight lists of 32 rows: a tile of 32 rows walks one of them, one of 128 walks four."""
    gpu = GPUS["A100"]
    shared, grouped = layer(groups=1), layer(groups=8)
    wide = [seconds("mma_128x128", work, gpu) for work in (shared, grouped)]
    narrow = [seconds("mma_64x32", work, gpu) for work in (shared, grouped)]
    assert wide[1] > 2.5 * wide[0]
    assert narrow[1] == pytest.approx(narrow[0])
    # Groups of 24 rows lie across tiles of 32: 8 tiles meet 10 groups + 7 that go on in the next tile.
    across = replace(layer(filters=240), filter_groups=10)
    assert seconds("mma_64x32", across, gpu) > 1.5 * seconds("mma_64x32", replace(across, filter_groups=1), gpu)


def test_a_last_wave_is_paid_for() -> None:
    gpu, counts = GPUS["A100"], counts_of("mma_128x128", 80)
    assert counts is not None
    resident = occupancy(counts.threads, counts.registers, counts.shared_bytes, 80)
    wave = resident * gpu.multiprocessors * 128
    work = replace(layer(), rows=128, filters=128, columns=8192, input_elements=8, output_elements=8)
    one, more, two = [seconds("mma_128x128", replace(work, pixels=p), gpu) for p in (wave, wave + 1, 2 * wave)]
    assert one < more <= two
    assert more - one > 0.4 * one  # one block on a multiprocessor has it to itself, and still takes half as long


def test_the_bound_follows_the_shape() -> None:
    gpu = GPUS["H200"]
    found = {
        "memory": predict("mma_128x64", layer(256, 56, 64, 256, taps=1), GPUS["L4"]),
        "launch": predict("mma_64x32", layer(1, 7, 16, 32, taps=1), gpu),
    }
    assert {name: p.bound if p else None for name, p in found.items()} == {name: name for name in found}
    endless = replace(gpu, cache_bandwidth=1e18, bandwidth=1e18)
    narrow = predict("mma_64x32", layer(256, 56), endless)
    assert narrow is not None
    assert narrow.bound == "issue"  # 146 instructions for 8 products


def test_layers_come_from_descriptions() -> None:
    fields = {
        "dataType": 1, "batch": 2, "height": 14, "width": 14, "channels": 16, "filters": 24, "kernelRows": 3,
        "kernelColumns": 3, "listGroups": 2, "listLength": 8, "rows": 32, "xPitch": 16, "yPitch": 24,
    }  # fmt: skip
    columns = [Layer.of(ConvDesc.of(listKind=kind, **fields), 14, 14).columns for kind in range(3)]
    assert columns == [72, 128, 8]
    found = Layer.of(ConvDesc.of(**fields, hasResidual=1), 14, 14)
    assert (found.pixels, found.rows, found.itemsize) == (392, 32, 2)
    assert found.bytes == 2 * (392 * 16 + 2 * 392 * 24 + 32 * 72)


def test_occupancy() -> None:
    """Shared memory, registers and threads each limit; sm_89 has less of the first and the last."""
    assert [occupancy(256, 127, 67456, sm) for sm in (80, 86, 89, 90, 120)] == [2, 1, 1, 2, 1]
    assert occupancy(256, 255, 0, 80) == 1
    assert [occupancy(256, 32, 0, sm) for sm in (80, 89)] == [8, 6]


def test_gpus_by_name() -> None:
    assert known_gpu("NVIDIA H200").name == "H200"
    assert known_gpu("NVIDIA GeForce RTX 4090").multiprocessors == 128
    assert known_gpu("NVIDIA A100-SXM4-80GB").name == "A100"
    with pytest.raises(InputError, match="GPU NVIDIA L40S"):
        known_gpu("NVIDIA L40S")
    with pytest.raises(InputError, match="GPU Voodoo: the tactic model has no figures for it; use one of A100"):
        known_gpu("Voodoo")

    class Properties:
        name, major, minor, multi_processor_count, L2_cache_size = "NVIDIA GeForce RTX 4060", 8, 9, 24, 24 << 20

    like = gpu_like(Properties())
    assert (like.multiprocessors, like.cache_bytes) == (24, 24 << 20)
    assert "scaled from" in like.source


def test_published_figures_agree_with_each_other() -> None:
    """Rate by clock and SMs: fp16 products with fp32 sums a cycle that the whitepapers give for an SM."""
    published = {"A100": 1024, "L4": 512, "RTX 4090": 256, "Orin": 1024, "Thor": 4096, "H100": 2048, "H200": 2048}
    for name, gpu in GPUS.items():
        assert gpu.macs_per_cycle == pytest.approx(published[name], rel=3e-3)
        assert gpu.source


def test_counts(library: Library) -> None:
    """Every tile has counts, and tensor cores cannot be busier than the issue slots allow."""
    for name in library.tactic_numbers:
        if not name.startswith("mma_"):
            continue
        counts = counts_of(name, 80)
        assert counts is not None, f"{name}: run python -m benchmarks.kernels.resources --json ..."
        assert 0 < counts.matrix + counts.shared_loads < counts.instructions
        assert counts.columns % 16 == 0
    assert counts_of("mma_64x64", 120) == counts_of("mma_64x64", 90)
    assert counts_of("mma_64x64", 87) == counts_of("mma_64x64", 80)
    assert predict("no_such_tactic", layer(), GPUS["A100"]) is None
