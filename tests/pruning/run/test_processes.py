"""Several processes prune as one: the same model from the same global batch, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export
from trtkp.bundle.pruned import load_pruned
from trtkp.cli import main
from trtkp.model import load_model
from trtkp.pruning.run import prune, training_folder

from .conftest import rows_of

ROOT = Path(__file__).parents[3]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def printed(*arguments: str) -> str:
    """What Python gives on standard output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def save_still(path: Path) -> None:
    """A net without dropout, which every process draws for itself."""

    def conv(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]

    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    torch.export.save(export(nn.Sequential(*conv(1), *conv(8), *conv(8), *head).eval(), (1, 8, 8)), path)


_FROZEN = """
regularise: {epochs: 2, batch: 30, lr: 0.1, freeze_batch_norm: true}
finetune: {epochs: 2, batch: 30, lr: 0.1, freeze_batch_norm: true}
"""


@pytest.mark.slow
def test_the_command_under_torchrun_writes_what_one_process_writes(work: Path) -> None:
    """Kept weights differ by the order in which floats are added, masks and zeros do not."""
    save_still(work / "still.pt2")
    Path("frozen.yaml").write_text(_FROZEN)
    command = ["prune", "still.pt2", "-m", "soks", "--ratio", "0.4", "--recipe", "frozen.yaml", "--data", "data.npz",
               "--json", "-o"]  # fmt: skip
    assert main([*command, "one"]) == 0
    told = json.loads(
        printed(*TORCHRUN, "-m", "trtkp", *command, "two")
    )  # one document: the second process says nothing
    assert told["pruned"] == "two"
    assert not training_folder(work / "two").exists()
    one, two = load_pruned("one"), load_pruned("two")
    alone, together, before = (load_model(path).parameters() for path in (one.model, two.model, "still.pt2"))
    assert len(one.index_sets) == 2
    for name, index in one.index_sets.items():
        mask = index.mask()
        assert not mask.all()
        assert np.array_equal(two.index_sets[name].mask(), mask)
        assert not together[name][~mask].any()
        assert (together[name] != before[name])[mask].all()
    for name, weight in alone.items():
        np.testing.assert_allclose(together[name], weight, rtol=1e-4, atol=1e-6, err_msg=name)
    assert one.manifest.accuracy == two.manifest.accuracy
    losses = [[float(row["loss"]) for row in rows_of(f"{path}/log.csv")] for path in ("one", "two")]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


_JOB = """
import json, os, sys
from pathlib import Path
import trtkp.pruning.run.subject
from tests.pruning.run.conftest import graph_once
from trtkp.pruning.train.recipe import Recipe, Training
from trtkp.pruning.run import PruneOptions, prune
trtkp.pruning.run.subject.named_graph = graph_once
rank, touched, here = os.environ.get("RANK", "0"), [], os.getcwd()
def audit(event, arguments):
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    if event == "open" and isinstance(arguments[2], int):
        writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(arguments[0], (str, os.PathLike)) and os.path.abspath(arguments[0]).startswith(here + "/"):
        touched.append(os.path.relpath(arguments[0], here).split("/")[0])
sys.addaudithook(audit)
told = {}
for epochs in (0, 1):
    options = PruneOptions(training=Training(finetune=Recipe(epochs=epochs, batch=30)))
    pruned = prune("still.pt2", f"p{epochs}", method="vskp", options=options, data="data.npz", ratio=0.5)
    told[epochs] = {"written": pruned.written, "touched": sorted(set(touched))}
    touched.clear()
Path(sys.argv[1], f"rank{rank}.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_all_processes_measure_as_one_and_one_writes(work: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With data alone, and with an epoch of training."""
    save_still(work / "still.pt2")
    out = tmp_path_factory.mktemp("told")
    (out / "job.py").write_text(_JOB)
    printed(*TORCHRUN, str(out / "job.py"), str(out))
    first, second = (json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for epochs in ("0", "1"):
        assert first[epochs]["written"]
        assert first[epochs]["touched"]
        assert second[epochs] == {"written": False, "touched": []}
    alone = prune("still.pt2", "alone", method="vskp", data="data.npz", ratio=0.5)
    together = load_pruned("p0")
    assert together.manifest.accuracy == alone.manifest.accuracy
    for name, weight in load_model(alone.model).parameters().items():
        assert np.array_equal(load_model(together.model).parameters()[name], weight)
