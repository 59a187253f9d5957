"""V-SKP's switches on the command line: fully connected layers, re-activation, index files out and in."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from examples.nets import export
from tests.models import work_in_copy
from trtkp.bundle.pruned import load_pruned
from trtkp.errors import InputError
from trtkp.model import load_model
from trtkp.pipeline.build import build
from trtkp.pruning.methods.vskp import mask_of_matrix

from .conftest import Trtkp


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.pt2`` and ``data.npz``."""
    folder = tmp_path_factory.mktemp("vskp")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20), nn.ReLU(),
        nn.Linear(20, 3),
    ).eval()  # fmt: skip
    torch.export.save(export(net, (1, 8, 8)), folder / "net.pt2")
    rng, labels = np.random.default_rng(0), np.arange(120) % 3
    np.savez(folder / "data.npz", x=rng.normal(size=(120, 1, 8, 8)).astype(np.float32), y=labels)
    return folder


@pytest.fixture
def work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; it is the current folder."""
    return work_in_copy(source, tmp_path, monkeypatch)


def test_fully_connected_layers(trtkp: Trtkp, work: Path) -> None:
    before = load_model("net.pt2").parameters()
    command = ("prune", "net.pt2", "-m", "vskp", "--ratio", "0.4", "--fully-connected", "--json")
    done = trtkp(*command, "-o", "shot")
    assert done.status == 0, done.err
    totals = done.document["totals"]
    # 12 channels of the second and third convolution keep 8 or so of 12 kernels each, the matrices 60 %
    index_sets = load_pruned("shot").index_sets.values()
    gone = {"conv": sum(int((~index.mask()).sum()) for index in index_sets), "matrix": 240 - 144 + 60 - 36}
    assert gone["conv"] > 0
    dense = {"params": 108 + 2 * 1296 + 3 * 12 + 24 + 300 + 23, "macs": 64 * (108 + 2 * 1296) + 300}
    removed = {"params": gone["conv"] + gone["matrix"], "macs": 64 * gone["conv"] + gone["matrix"]}
    for cost, count in dense.items():
        assert (totals[f"dense_{cost}"], totals[f"retained_{cost}"]) == (count, count - removed[cost])
    written = load_model(load_pruned("shot").model).parameters()
    assert sum(int((array == 0).sum()) for array in written.values() if array.ndim > 1) == removed["params"]
    # with the statistics of 12 channels and their 64 elements each; without BatchNorm and biases
    counted, weights = totals["as_in_paper"], 108 + 2 * 1296 + 300
    for counts, params, flops in (
        (counted, dense["params"] + 24, dense["macs"] + 12 * 64),
        (counted["other"], weights, dense["macs"]),
    ):
        assert (counts["dense_params"], counts["retained_params"]) == (params, params - removed["params"])
        assert (counts["dense_flops"], counts["retained_flops"]) == (flops, flops - removed["macs"])
    assert done.document["matrices"] == {"9.weight": 144, "11.weight": 36}
    tuned = trtkp(*command, "-o", "tuned", "--data", "data.npz", "--epochs", "1", "--lr", "0.1")
    assert tuned.status == 0, tuned.err
    for folder in ("shot", "tuned"):
        weights = load_model(load_pruned(folder).model).parameters()
        for name in ("9.weight", "11.weight"):
            mask = mask_of_matrix(before[name], 0.4)
            assert np.array_equal(weights[name] != 0, mask)
            assert np.array_equal(weights[name][mask], before[name][mask]) == (folder == "shot")
    built = trtkp("build", "tuned", "-o", "b", "-b", "onnxruntime", "--json")
    assert built.status == 0, built.err
    assert built.document["totals"] == tuned.document["totals"]
    assert trtkp("verify", "b").status == 0
    shown = trtkp("inspect", "b").out
    assert "as in the paper (with BatchNorm and its statistics): params" in shown
    assert "as in the paper (without BatchNorm and biases): params" in shown
    plain = trtkp("prune", "net.pt2", "-m", "vskp", "--ratio", "0.4", "-o", "p", "--json").document
    assert plain["matrices"] == {}
    assert trtkp("prune", "net.pt2", "-m", "kep", "--fully-connected", "-o", "p").message.startswith(
        "--fully-connected is a setting of vskp and l1, not of kep"
    )


class Tokens(nn.Module):
    """Fully connected layers on [N, T, C], of which one is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.mix, self.plain, self.head = nn.Linear(8, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(self.stem(x).relu()).flatten(2).transpose(1, 2)
        return self.head(self.plain(self.mix(self.mix(tokens).relu())).mean(dim=1))


def test_fully_connected_layers_on_tokens(trtkp: Trtkp, work: Path) -> None:
    torch.manual_seed(0)
    torch.export.save(export(Tokens().eval(), (1, 8, 8)), "tokens.pt2")
    before = load_model("tokens.pt2").parameters()
    command = ("prune", "tokens.pt2", "-m", "vskp", "--ratio", "0.5", "--fully-connected", "-o", "p", "--json")
    done = trtkp(*command, "--data", "data.npz", "--epochs", "1")
    assert done.status == 0, done.err
    names = ["mix.weight", "plain.weight", "head.weight"]
    assert list(done.document["matrices"]) == names
    weights = load_model(load_pruned("p").model).parameters()
    for name in names:
        assert np.array_equal(weights[name] != 0, mask_of_matrix(before[name], 0.5))
    totals = done.document["totals"]
    kept = load_pruned("p").index_sets["conv.weight"].retained
    assert totals["dense_params"] == sum(array.size for array in before.values())
    assert totals["dense_params"] - totals["retained_params"] == 576 - kept + 32 + 24 + 9
    # 16 tokens, of which each goes through the first matrix twice
    assert totals["dense_macs"] == 36 * 72 + 16 * 576 + 16 * (2 * 64 + 48) + 18
    assert totals["dense_macs"] - totals["retained_macs"] == 16 * (576 - kept) + 16 * (2 * 32 + 24) + 9


class Lookalikes(nn.Module):
    """Matrices that are no weights of fully connected layers, and one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.left, self.right = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
        self.table = nn.Parameter(torch.randn(8, 8))
        self.fixed: torch.Tensor
        self.register_buffer("fixed", torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(self.stem(x).relu()).flatten(2).transpose(1, 2)
        mixed = tokens @ torch.full((8, 8), 0.3) @ self.fixed @ (self.left @ self.right)
        return self.head((mixed @ self.table + self.table[0]).mean(dim=1))


def test_matrices_that_are_no_weights_of_fully_connected_layers_stay(trtkp: Trtkp, work: Path) -> None:
    torch.manual_seed(0)
    torch.export.save(export(Lookalikes().eval(), (1, 8, 8)), "lookalikes.pt2")
    command = ("prune", "lookalikes.pt2", "-m", "vskp", "--ratio", "0.5", "--fully-connected", "-o", "p", "--json")
    for data in ((), ("--data", "data.npz", "--epochs", "1")):
        done = trtkp(*command, *data)
        assert done.status == 0, done.err
        assert list(done.document["matrices"]) == ["head.weight"]


def test_filters_that_nothing_reads_are_read_again(trtkp: Trtkp, work: Path) -> None:
    """The third convolution's kernels for channels 2 and 7 are the smallest: no filter keeps them."""
    net = load_model("net.pt2").module()
    with torch.no_grad():
        net.get_parameter("5.weight")[:, [2, 7]] *= 1e-3
        net.get_parameter("5.weight")[4, 2] *= 5  # the largest that there was for channel 2
    batch = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(net, (torch.randn(2, 1, 8, 8),), dynamic_shapes=batch), "dead.pt2")
    command = ("prune", "dead.pt2", "-m", "vskp", "--ratio", "0.5", "--allocation", "uniform", "--json", "--data",
               "data.npz", "--epochs", "1")  # fmt: skip
    plain = trtkp(*command, "-o", "plain")
    assert plain.status == 0, plain.err
    mended = trtkp(*command, "-o", "mended", "--reactivate")
    assert mended.status == 0, mended.err
    assert mended.document["report"]["reactivated"] == {"5.weight": 2}
    masks = {name: load_pruned(name).index_sets["5.weight"].mask()[:, :, 0, 0] for name in ("plain", "mended")}
    assert not masks["plain"][:, [2, 7]].any()
    assert masks["mended"][4, 2]
    assert masks["mended"][:, [2, 7]].sum() == 2
    assert (masks["mended"].sum(axis=1) == 6).all()
    weights = load_model(load_pruned("mended").model).parameters()["5.weight"]
    assert np.array_equal(weights[4, 2], load_model("dead.pt2").parameters()["5.weight"][4, 2])
    assert np.array_equal(weights.any(axis=(2, 3)), masks["mended"])
    done = trtkp(*command, "-o", "p", "--reactivate", "--filter-group", "4")
    assert done.message == "--reactivate changes single kernels; leave out --filter-group, --channel-block and --nm"


def test_what_takes_a_fine_tune_is_refused_without_one(trtkp: Trtkp, work: Path) -> None:
    for data in ((), ("--data", "data.npz")):
        done = trtkp("prune", "net.pt2", "-m", "vskp", "--reactivate", "-o", "p", *data)
        assert done.status == 2
        assert done.message == "--reactivate repairs filters that a fine-tune did not move; give --data and --epochs"
    for options, words in (
        (
            {"reactivate": True},
            "--reactivate repairs .* a build trains nothing; use trtkp prune with --data",
        ),
        ({"fully_connected": True}, "--fully-connected prunes layers without index sets; use trtkp prune"),
    ):
        with pytest.raises(InputError, match=words):
            build("net.pt2", "p", method="vskp", **options)
    assert not Path("p").exists()


@pytest.mark.parametrize(("form", "kind", "width"), [("bitmap", np.uint8, 2), ("list", np.int32, 6)])
def test_indices_out_and_in(trtkp: Trtkp, work: Path, form: str, kind: type, width: int) -> None:
    assert trtkp("prune", "net.pt2", "-m", "vskp", "--allocation", "uniform", "-o", "p").status == 0
    assert trtkp("export-index", "p", "-o", "index.safetensors", "--form", form).status == 0
    arrays = load_file("index.safetensors")
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == dict.fromkeys(
        ("3.weight", "5.weight"), (np.dtype(kind), (12, width))
    )
    done = trtkp("prune", "net.pt2", "--index", "index.safetensors", "-o", "q")
    assert done.status == 0, done.err
    one, other = load_pruned("p"), load_pruned("q")
    for name, index in one.index_sets.items():
        assert np.array_equal(index.mask(), other.index_sets[name].mask())
    digest = sha256(Path("index.safetensors").read_bytes()).hexdigest()
    assert other.manifest.settings == {"index": "index.safetensors", "sha256": digest}
    assert trtkp("build", "q", "-o", "b", "-b", "onnxruntime").status == 0
    assert trtkp("export-index", "b", "-o", "again.safetensors", "--form", form).status == 0
    assert all(np.array_equal(load_file("again.safetensors")[name], array) for name, array in arrays.items())


def test_an_index_with_2_4_inside_is_not_written_as_lists(trtkp: Trtkp, work: Path) -> None:
    assert trtkp("prune", "net.pt2", "-m", "vskp", "--nm", "2:4", "--allocation", "uniform", "-o", "p").status == 0
    done = trtkp("export-index", "p", "-o", "index.safetensors")
    assert done.message == "layer 3.weight: V-SKP's index formats cannot hold 2:4 inside lists"
    assert not Path("index.safetensors").exists()


def test_bad_indices(trtkp: Trtkp, work: Path) -> None:
    for name, array, words in (
        ("3.weight", np.zeros((12, 3), np.float32), "float32[12, 3] is neither a list"),
        ("3.weight", np.zeros((5, 2), np.int32), "that do not fit a weight [12, 12, 3, 3]"),
        ("9.conv", np.zeros((12, 2), np.uint8), "layer 9.conv: the model has no such convolution"),
    ):
        save_file({name: array}, "bad.safetensors")
        done = trtkp("prune", "net.pt2", "--index", "bad.safetensors", "-o", "p")
        assert words in done.message
        assert "bad.safetensors" in done.message
        assert done.status == 2
    Path("text").write_text("no")
    assert "text: is not a readable index" in trtkp("prune", "net.pt2", "--index", "text", "-o", "p").message
    done = trtkp("prune", "net.pt2", "--index", "bad.safetensors", "--ratio", "0.5", "-o", "p")
    assert "--ratio and --index exclude each other; leave out --ratio" in done.message
    assert trtkp("prune", "net.pt2", "-m", "kep", "-o", "k").status == 0
    done = trtkp("export-index", "k", "-o", "x")
    assert "needs whole kernels" in done.message or "whole kernels" in done.message
    assert "--form tree: not known" in trtkp("export-index", "k", "-o", "x", "--form", "tree").message
    assert not Path("x").exists()
