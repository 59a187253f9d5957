"""The trainer: zeros that hold, resumption after a kill, several processes, exported programs, losses that are none."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from examples.nets import export
from trtkp.errors import InputError, JobError
from trtkp.model import load_model
from trtkp.pruning.methods.kep import top_n_mask
from trtkp.pruning.methods.kep_penalty import GrowingPenalty
from trtkp.pruning.train.checkpoint import load_checkpoint
from trtkp.pruning.train.data import Arrays, Loader
from trtkp.pruning.train.log import TrainingLog
from trtkp.pruning.train.modes import set_training
from trtkp.pruning.train.processes import Processes
from trtkp.pruning.train.recipe import Recipe
from trtkp.pruning.train.trainer import Trainer, evaluate

NewNet = Callable[..., nn.Sequential]
ROOT = Path(__file__).parents[3]
RECIPE = Recipe(epochs=3, batch=16, lr=0.1, weight_decay=1e-3)


def loader(data: Arrays, batch: int = 16, *, augment: bool = True) -> Loader:
    return Loader(data, data.how, batch=batch, seed=5, processes=Processes(), augment=augment)


def masks_of(net: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: top_n_mask(net.get_parameter(name).detach().numpy(), 3) for name in ("0.weight", "3.weight")}


def zeros_hold(net: nn.Module, masks: dict[str, np.ndarray[Any, Any]]) -> bool:
    return all(bool((net.get_parameter(n).detach().numpy()[~mask] == 0).all()) for n, mask in masks.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_frozen_zeros_are_exact_in_every_precision(new_net: NewNet, data: Arrays, precision: str) -> None:
    net = new_net()
    masks = masks_of(net)
    before = net[3].weight.detach().clone().numpy()
    recipe = Recipe(epochs=3, batch=16, lr=0.1, weight_decay=0.01, precision=precision)
    Trainer(net, loader(data), recipe, masks=masks).run()
    assert zeros_hold(net, masks)
    assert (net[3].weight.detach().numpy() != before)[masks["3.weight"]].all()
    assert not net.training


def test_it_learns(new_net: NewNet, data: Arrays) -> None:
    net = new_net()
    Trainer(net, loader(data), Recipe(epochs=8, batch=16, lr=0.1)).run()
    assert evaluate(net, loader(data, augment=False), torch.device("cpu")) > 0.9


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("regularised", [False, True])
def test_going_on_gives_the_weights_of_an_unbroken_run(
    new_net: NewNet, data: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regularised: bool
) -> None:
    """Stopped in the middle of an epoch, with dropout, augmentation, momentum and a penalty's own state."""
    file = tmp_path / "state.safetensors"

    def trainer(net: nn.Module, **options: Any) -> Trainer:
        masks = masks_of(new_net())
        if regularised:
            options["regulariser"] = GrowingPenalty(net, masks, delta=0.01, every=2)
        else:
            options["masks"] = masks
        return Trainer(net, loader(data), RECIPE, fingerprint="f", **options)

    unbroken = new_net()
    trainer(unbroken).run()

    class StopError(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if "2/3" in phase and done == 4:
            raise StopError

    monkeypatch.setattr("trtkp.pruning.train.trainer._CHECK_EVERY", 1)
    with pytest.raises(StopError):
        trainer(new_net(), checkpoint=file, seconds=0, progress=stop).run()
    found = load_checkpoint(file, "f")
    assert found is not None
    assert (found.epoch, found.step) == (1, 4)
    again = new_net(seed=9)
    trainer(again).run(found)
    assert states_equal(again, unbroken)


PROGRAM = """
import sys, torch
from pathlib import Path
from tests.pruning.train.conftest import _net, data
from tests.pruning.train.test_trainer import loader, masks_of
from trtkp.pruning.train.checkpoint import load_checkpoint
from trtkp.pruning.train.recipe import Recipe
from trtkp.pruning.train.trainer import Trainer
torch.set_num_threads(1)
file, out = Path(sys.argv[1]), Path(sys.argv[2])
net = _net()
start = load_checkpoint(file, "f")
if start is not None:
    print("from", start.epoch, flush=True)
def progress(phase, done, total):
    print(phase, flush=True)
trainer = Trainer(net, loader(data.__wrapped__()), Recipe(epochs=15, batch=16, lr=0.1), masks=masks_of(net),
                  checkpoint=file, fingerprint="f", progress=progress)
trainer.run(start)
from safetensors.torch import save_file
save_file(net.state_dict(), out)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the other processes have: sums are bit for bit the same only in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_killed_and_started_again(new_net: NewNet, data: Arrays, tmp_path: Path) -> None:
    """kill -9 at any moment: what is on disk is whole, and leads to the same weights."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(file: str, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / file), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)

    killed = start("killed", "never")
    assert killed.stdout is not None
    for line in killed.stdout:
        if "7/15" in line:
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "never").exists()
    again = start("killed", "again")
    printed, _ = again.communicate(timeout=300)
    assert printed.startswith(("from 6", "from 7"))
    found, unbroken = load_file(tmp_path / "again"), new_net()
    Trainer(unbroken, loader(data), Recipe(epochs=15, batch=16, lr=0.1), masks=masks_of(new_net())).run()
    wanted = unbroken.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


PROCESS = """
import sys, torch
from tests.pruning.train.conftest import _net, data
from tests.pruning.train.test_trainer import masks_of
from trtkp.pruning.methods.kep_penalty import GrowingPenalty
from trtkp.pruning.train.data import Loader
from trtkp.pruning.train.processes import joined
from trtkp.pruning.train.recipe import Recipe
from trtkp.pruning.train.trainer import Trainer, evaluate
torch.set_num_threads(1)
samples = data.__wrapped__()
processes = joined()
for frozen in (True, False):
    net = _net(dropout=0.0)
    batches = Loader(samples, samples.how, batch=16, seed=5, processes=processes)
    recipe = Recipe(epochs=2, batch=16, lr=0.05, freeze_batch_norm=frozen)
    penalty = GrowingPenalty(net, masks_of(net), delta=0.01, every=2)
    Trainer(net, batches, recipe, regulariser=penalty, processes=processes).run()
    plain = Loader(samples, samples.how, batch=16, seed=5, processes=processes, augment=False)
    accuracy = evaluate(net, plain, torch.device("cpu"), processes)
    with torch.no_grad():
        x, y = torch.from_numpy(samples.inputs), torch.from_numpy(samples.labels)
        loss = float(torch.nn.functional.cross_entropy(net(x), y))
    if processes.first:
        torch.save({"accuracy": accuracy, "loss": loss, **net.state_dict()}, f"{sys.argv[1]}-{frozen}")
"""


def test_two_processes_train_as_one(new_net: NewNet, data: Arrays, tmp_path: Path) -> None:
    """Equal global batch: the same weights with frozen BatchNorm; else, as it sees half batches, nearly the loss."""
    (tmp_path / "job.py").write_text(PROCESS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "one")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(alone, env=environment, check=True, cwd=ROOT, timeout=300)
    together = [*torchrun, str(tmp_path / "job.py"), str(tmp_path / "two")]
    subprocess.run(together, env=environment, check=True, cwd=ROOT, timeout=120, capture_output=True)
    for frozen in (True, False):
        one, two = (torch.load(tmp_path / f"{name}-{frozen}", weights_only=True) for name in ("one", "two"))
        assert abs(one["loss"] - two["loss"]) <= (1e-5 if frozen else 0.05)
        if not frozen:
            continue
        for name in one.keys() - {"accuracy", "loss"}:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
        assert one["accuracy"] == two["accuracy"]
    assert not torch.equal(one["3.weight"], new_net(dropout=0.0)[3].weight)


def test_an_exported_program_trains_as_its_module(new_net: NewNet, data: Arrays, tmp_path: Path) -> None:
    net = new_net().eval()
    torch.export.save(export(net, (2, 8, 8)), tmp_path / "net.pt2")
    program = load_model(tmp_path / "net.pt2").module()
    Trainer(net, loader(data), RECIPE, seed=3).run()
    Trainer(program, loader(data), RECIPE, seed=3).run()
    ours = program.state_dict()
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours["1.running_mean"], torch.zeros(6))
    x = torch.randn(4, 2, 8, 8)
    assert torch.equal(program(x), program(x))  # dropout is off again
    torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-5)


def test_batch_norm_can_stay_frozen(new_net: NewNet, tmp_path: Path) -> None:
    net = new_net().eval()
    torch.export.save(export(net, (2, 8, 8)), tmp_path / "net.pt2")
    for module in (net, load_model(tmp_path / "net.pt2").module()):
        set_training(module, True, freeze_batch_norm=True)
        module(torch.randn(8, 2, 8, 8) + 3)
        assert torch.equal(module.get_buffer("1.running_mean"), torch.zeros(6))
        set_training(module, True)
        module(torch.randn(8, 2, 8, 8) + 3)
        assert not torch.equal(module.get_buffer("1.running_mean"), torch.zeros(6))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    new_net: NewNet, data: Arrays, tmp_path: Path
) -> None:
    net, file = new_net(), tmp_path / "state"

    class Poison(GrowingPenalty):
        def after_epoch(self, epoch: int) -> None:
            if epoch == 2:
                self.mu = float("nan")

        def _count(self, iteration: int) -> None:
            self._iteration = iteration

    bad = Poison(net, masks_of(net))
    with pytest.raises(
        JobError, match=r"became NaN or infinite in finetune, epoch 3; the last good checkpoint is .*state"
    ):
        Trainer(net, loader(data), RECIPE, regulariser=bad, checkpoint=file, fingerprint="f").run()
    found = load_checkpoint(file, "f")
    assert found is not None
    assert (found.epoch, found.step) == (2, 0)
    assert all(bool(torch.isfinite(t).all()) for t in found.part("model").values())


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_a_weight_that_is_no_number_is_never_kept(
    new_net: NewNet, data: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The step that breaks it has a loss like any other; the next loss would be after the checkpoint."""
    net, file = new_net(), tmp_path / "state.safetensors"
    wanted = (2, 0) if seconds else (2, 2)
    steps = 2 * len(loader(data)) + (len(loader(data)) if seconds else 3)

    class Breaking(GrowingPenalty):
        def after_step(self, lr: float) -> None:
            super().after_step(lr)
            if self._iteration == steps:
                net.get_parameter("3.weight").data[0, 0, 0, 0] = float("nan")

    monkeypatch.setattr("trtkp.pruning.train.trainer._CHECK_EVERY", 1)
    bad = Breaking(net, masks_of(net))
    with pytest.raises(
        JobError, match="a weight became NaN or infinite in finetune, epoch 3; the last good checkpoint"
    ):
        Trainer(net, loader(data), RECIPE, regulariser=bad, checkpoint=file, fingerprint="f", seconds=seconds).run()
    found = load_checkpoint(file, "f")
    assert found is not None
    assert (found.epoch, found.step) == wanted
    assert all(bool(torch.isfinite(t).all()) for t in found.part("model").values())


AGREE = """
import torch
from trtkp.pruning.train.processes import joined
processes = joined()
cpu = torch.device("cpu")
assert processes.agree((-1, 7, 3), cpu)
assert not processes.agree((0, processes.rank, 3), cpu)
assert not processes.agree((-1 if processes.rank else 2, 4, 4), cpu)
group = torch.distributed.group.WORLD
assert joined().world == processes.world
assert torch.distributed.group.WORLD is group
"""


def test_processes_see_that_they_do_not_agree(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(AGREE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, str(tmp_path / "job.py")], env=environment, check=True, cwd=ROOT, timeout=120)
    exec(compile(AGREE.replace("assert not", "assert"), "alone", "exec"))  # noqa: S102 - alone everything agrees


def test_wrong_classes(new_net: NewNet, data: Arrays) -> None:
    with pytest.raises(InputError, match=r"labels 0\.\.2, the model has 2 classes"):
        Trainer(new_net(classes=2), loader(data), RECIPE).run()
    with pytest.raises(InputError, match=r"the model's output is \[16, 6, 8, 8\], but training needs logits"):
        Trainer(new_net()[:3], loader(data), RECIPE).run()


def test_distillation_pulls_towards_the_teacher(new_net: NewNet, data: Arrays) -> None:
    teacher = new_net(seed=4, dropout=0.0).eval()
    x = torch.from_numpy(data.inputs)
    # labels say nothing: only the teacher can be learnt from
    noise = Arrays(data.inputs, np.zeros(90, np.int64), data.how)
    distances = []
    for distil in (0.0, 1.0):
        net = new_net(seed=1, dropout=0.0)
        recipe = Recipe(epochs=10, batch=16, lr=0.1, distil=distil, temperature=2.0)
        Trainer(net, loader(noise), recipe, teacher=teacher).run()
        with torch.no_grad():
            distances.append(float((net(x).softmax(1) - teacher(x).softmax(1)).abs().mean()))
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(("every", "measured"), [(0, ""), (1, "123"), (2, "2")])
def test_the_log_has_the_accuracy_as_often_as_asked(
    new_net: NewNet, data: Arrays, tmp_path: Path, every: int, measured: str
) -> None:
    log = TrainingLog(tmp_path)
    trainer = Trainer(new_net(), loader(data), RECIPE, log=log, test=lambda _: 0.5, test_every=every)
    trainer.run()
    log.close()
    rows = list(csv.DictReader(log.path.open()))
    assert "".join(row["epoch"] for row in rows if row["test_accuracy"]) == measured


def test_log_has_a_row_per_epoch_also_after_going_on(new_net: NewNet, data: Arrays, tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    net = new_net()
    trainer = Trainer(net, loader(data), RECIPE, log=log, test=lambda model: 0.5)
    trainer.run()
    log.close()
    rows = list(csv.DictReader(log.path.open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {row["test_accuracy"] for row in rows} == {"0.5"}
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])
    log.begin("finetune", 2)
    assert [row["epoch"] for row in csv.DictReader(log.path.open())] == ["1"]
    with log.path.open("a") as file:
        file.write("finetune,2,0.0")  # a kill while it was written
    log.begin("finetune", 3)
    assert [row["epoch"] for row in csv.DictReader(log.path.open())] == ["1"]


@pytest.mark.parametrize("unlucky", [2, 3])
def test_a_kill_while_the_accuracy_is_measured_leaves_no_epoch_out(
    new_net: NewNet, data: Arrays, tmp_path: Path, unlucky: int
) -> None:
    """The last epoch neither, after which nothing is left to train."""

    class StopError(Exception):
        pass

    measured: list[int] = []

    def accuracy(net: nn.Module) -> float:
        measured.append(1)
        if stop and len(measured) == unlucky:
            raise StopError
        return evaluate(net, loader(data, augment=False), torch.device("cpu"))

    def rows(name: str) -> list[dict[str, str]]:
        with (tmp_path / name / "log.csv").open(newline="") as file:
            return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]

    def trainer(name: str, net: nn.Sequential) -> Trainer:
        return Trainer(net, loader(data), RECIPE, masks=masks_of(new_net()), checkpoint=tmp_path / name / "state",
                       fingerprint="f", log=TrainingLog(tmp_path / name), test=accuracy)  # fmt: skip

    stop = False
    trainer("unbroken", new_net()).run()
    assert len(rows("unbroken")) == RECIPE.epochs
    measured.clear()
    stop = True
    with pytest.raises(StopError):
        trainer("broken", new_net()).run()
    assert len(rows("broken")) == unlucky - 1
    stop = False
    again = trainer("broken", new_net(seed=9))
    again.run(load_checkpoint(tmp_path / "broken" / "state", "f"))
    assert rows("broken") == rows("unbroken")
    assert not again.model.training


def test_checkpoints_are_refused_in_one_line(new_net: NewNet, data: Arrays, tmp_path: Path) -> None:
    file = tmp_path / "state"
    assert load_checkpoint(file, "f") is None
    Trainer(new_net(), loader(data), Recipe(epochs=1, batch=16), checkpoint=file, fingerprint="f").run()
    assert load_checkpoint(file, "f") is not None
    with pytest.raises(InputError, match="is a checkpoint of another net, data, method or recipe"):
        load_checkpoint(file, "g")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(file, "f")
