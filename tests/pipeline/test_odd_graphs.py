"""Several inputs, shared weights, residuals of the input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import trtkp
from tests.pipeline.whole import RTX, assert_verified, assert_whole, build, needs_rtx
from trtkp.errors import InputError


class TwoIn(nn.Module):
    """Two images in, two results out; the first result is half of the second's way."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.relu(self.body(torch.relu(self.left(left) + self.right(right))))
        return both, self.head(both).mean((2, 3))


class Shared(nn.Module):
    """One weight, two convolutions; the second keeps a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.conv(x))
        return torch.relu(self.conv(y) + y)


class InputTwice(nn.Module):
    """The model's input goes into two convolutions and comes back as a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + x) + self.b(x)


class ResidualIsInput(nn.Module):
    """``conv(x) + x``, whose X and residual are one value, before and after an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x) + x
        return y, torch.relu(self.b(y) + y)


def save_odd(net: nn.Module, path: Path, *feeds: Tensor) -> Path:
    dim = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        torch.export.save(torch.export.export(net.eval(), feeds, dynamic_shapes=tuple({0: dim} for _ in feeds)), path)
    return path


@pytest.mark.parametrize("lowering", ["auto", "rectangles", "taps"])
@pytest.mark.parametrize(
    ("factory", "channels", "ops"),
    [
        (TwoIn, (3, 1), [None, None, "Relu", ""]),
        (Shared, (3,), [None, "Relu", "AddRelu"]),
        (InputTwice, (4,), ["Relu", "AddRelu", "Add"]),
        (ResidualIsInput, (4,), ["Add", "AddRelu"]),
    ],
)
def test_odd_graphs(
    tmp_path: Path, factory: Callable[[], nn.Module], channels: tuple[int, ...], ops: list[str | None], lowering: str
) -> None:
    torch.manual_seed(0)
    path = save_odd(factory(), tmp_path / "odd.pt2", *(torch.zeros(2, c, 8, 8) for c in channels))
    everything: tuple[str, ...] = () if factory in (TwoIn, Shared) else ("*",)  # the stem is all there is
    bundle = build(path, tmp_path / "b", share="per-layer", include=everything, lowering=lowering)
    found = [layer.op and layer.op.removeprefix("StripeConv") for layer in bundle.manifest.layers]
    assert found == ops
    assert_whole(bundle)
    assert_verified(bundle)
    assert trtkp.bench([bundle], batch=3, runs=1, warmup=0)[0].batch == 3


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("two") / "two.pt2"
    return save_odd(TwoIn(), path, torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8))


def test_shapes_of_two_inputs(two_inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the model has 2 inputs.*name the input"):
        build(two_inputs, tmp_path / "b", opt=("4x3x8x8",))
    bundle = build(two_inputs, tmp_path / "b", share="per-layer", opt=("left:4x3x8x8",))
    assert_verified(bundle)
    opt = {name: shapes["opt"] for name, shapes in bundle.manifest.profile.items()}
    assert opt == {"left": [4, 3, 8, 8], "right": [4, 1, 8, 8]}  # one batch, one size


@needs_rtx
def test_two_inputs_in_tensorrt_rtx(two_inputs: Path, tmp_path: Path) -> None:
    bundle = build(two_inputs, tmp_path / "b", precision="fp16", **RTX)
    assert_whole(bundle)
    assert_verified(bundle)
    assert [record.name for record in bundle.manifest.inputs] == ["left", "right"]
    assert len(bundle.manifest.outputs) == 2
