"""Small networks, and archives with parts exchanged."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

Edit = bytes | None | Callable[[bytes], bytes]


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, dropout, pooling, linear: [N, 3, 8, 8] to [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.drop(y.mean((2, 3))))


class Shared(nn.Module):
    """One weight used by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.again.weight = self.conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.relu(self.conv(x)))


def make_net(seed: int = 0) -> Net:
    """The same network every time, with BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(seed)
    net = Net()
    net.get_buffer("bn.running_mean").uniform_(-1, 1)
    net.get_buffer("bn.running_var").uniform_(0.5, 2)
    return net.eval()


def save_program(module: nn.Module, path: Path, *feeds: torch.Tensor, batch: bool = True) -> Path:
    """``torch.export.save`` with a batch of 1 to 64."""
    dynamic = tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in feeds) if batch else None
    torch.export.save(torch.export.export(module, feeds, dynamic_shapes=dynamic), path)
    return path


def rewrite_zip(source: Path, target: Path, edits: Mapping[str, Edit], add: Mapping[str, bytes] | None = None) -> Path:
    """Copy an archive with members changed (bytes or a function), removed (None) or added; names without the root."""
    edits, found = dict(edits), set()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for info in old.infolist():
            name = info.filename.removeprefix(f"{root}/")
            data: bytes | None = old.read(info)
            if name in edits:
                found.add(name)
                edit = edits[name]
                data = edit(data) if callable(edit) else edit  # type: ignore[arg-type]
            if data is not None:
                new.writestr(f"{root}/{name}", data)
        for name, data in (add or {}).items():
            new.writestr(f"{root}/{name}", data)
    assert found == set(edits)
    return target


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.code = f"open({str(marker)!r}, 'w').close()"

    def __reduce__(self) -> Any:
        return exec, (self.code,)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported ``Net`` with a dynamic batch."""
    return save_program(make_net(), tmp_path_factory.mktemp("program") / "net.pt2", torch.zeros(2, 3, 8, 8))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists only if something was executed."""
    return tmp_path / "executed"
