"""The device and its timer: a CUDA device, timed with events and graph replay, or the emulator for trial runs."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trtkp.kernels.prediction import Gpu, gpu_like, known_gpu

__all__ = ["Device", "describe_machine", "open_device"]

#: A timing rotates through copies of the input that together are this many times the L2 cache, so that no launch finds
#: its input there.
ROTATION = 2.0
MAX_COPIES = 64
#: All rounds of a timing together take about this many seconds, and there are at least this many rounds.
ROUNDS_SECONDS, MIN_ROUNDS = 0.3, 5


@dataclass(frozen=True)
class Device:
    """A CUDA device, or the CPU with emulated kernels, whose times mean nothing."""

    torch: torch.device
    gpu: Gpu
    cache_bytes: int
    emulated: bool

    def synchronise(self) -> None:
        """Wait until the device has done all its work."""
        if not self.emulated:
            torch.cuda.synchronize(self.torch)

    def copies(self, tensor: Tensor) -> list[Tensor]:
        """The tensor, and as many random ones of its shape as are needed to exceed the L2 cache (`ROTATION`)."""
        if self.emulated:
            return [tensor]
        count = int(
            min(MAX_COPIES, max(2, -(-ROTATION * self.cache_bytes // (tensor.numel() * tensor.element_size()))))
        )
        return [tensor, *(torch.randn_like(tensor) for _ in range(count - 1))]

    def time(
        self, call: Callable[[Tensor], Any], inputs: Sequence[Tensor], *, runs: int = 20, graph: bool = True
    ) -> dict[str, Any]:
        """Time a call, in microseconds: median, 10th and 90th percentile over rounds through all inputs.

        Args:
            call: the function to time.
            inputs: the inputs of a round; see `copies`.
            runs: largest number of rounds.
            graph: capture a round in a CUDA graph and replay it; else launch it from Python, as a user would.
        """
        with torch.no_grad():
            if self.emulated:
                samples = [self._wall(call, x) for x in inputs for _ in range(2)]
                return _summary(samples, 1, "emulated: meaningless")
            for x in inputs[:3]:  # algorithms and tactics are chosen now
                call(x)
            self.synchronise()
            play: Callable[[], Any] = lambda: [call(x) for x in inputs]  # noqa: E731
            if graph:
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured):
                    kept = play()
                play = captured.replay
            play()
            runs = self._affordable(play, runs)
            events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
            events[0].record()
            for event in events[1:]:
                play()
                event.record()
            self.synchronise()
            if graph:
                del kept
        samples = [1e3 * a.elapsed_time(b) for a, b in pairwise(events)]
        return _summary(samples, len(inputs), "graph replay" if graph else "launched")

    def _affordable(self, play: Callable[[], Any], runs: int) -> int:
        """The number of rounds: fewer if a round is long, because long rounds vary less."""
        self.synchronise()
        start = time.perf_counter()
        play()
        self.synchronise()
        return int(min(runs, max(MIN_ROUNDS, ROUNDS_SECONDS / (time.perf_counter() - start))))

    def is_usable(self) -> bool:
        """Whether the device still answers. After an illegal memory access it no longer does in this process."""
        try:
            self.synchronise()
        except RuntimeError:
            return False
        return True

    def _wall(self, call: Callable[[Tensor], Any], x: Tensor) -> float:
        start = time.perf_counter()
        call(x)
        return 1e6 * (time.perf_counter() - start)


def _summary(samples: Sequence[float], calls: int, how: str) -> dict[str, Any]:
    p10, median, p90 = np.percentile(np.asarray(samples) / calls, [10, 50, 90])
    return {"median_us": round(float(median), 3), "p10_us": round(float(p10), 3), "p90_us": round(float(p90), 3),
            "rounds": len(samples), "calls_a_round": calls, "how": how}  # fmt: skip


def open_device(name: str) -> Device:
    """The device called ``cuda`` or ``emulated``.

    Raises:
        SystemExit: PyTorch sees no GPU; one line says so.
    """
    if name == "emulated":
        return Device(torch.device("cpu"), known_gpu("A100"), 1, emulated=True)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device: install PyTorch for CUDA, or use --device emulated")
        raise SystemExit(3)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    properties = torch.cuda.get_device_properties(0)
    return Device(torch.device("cuda", 0), gpu_like(properties), properties.L2_cache_size, emulated=False)


def describe_machine(device: Device) -> dict[str, Any]:
    """GPU, driver and the versions of the libraries."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.emulated:
        return found | {"gpu": "emulated", "note": "timings are meaningless: kernels ran on the CPU"}
    properties = torch.cuda.get_device_properties(0)
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout.split(", V")
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    return found | {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": device.cache_bytes,
        "driver, clocks, power": smi[0] if smi else "unknown",
        "cuda": torch.version.cuda,
        "nvcc": nvcc[1].split()[0] if len(nvcc) > 1 else "unknown",
        "cudnn": torch.backends.cudnn.version(),
    }
