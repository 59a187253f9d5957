"""One process, from a model file to what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from examples.nets import export
from trtkp.model import load_model
from trtkp.pruning.run import prune, training_folder

from .conftest import small_net


def test_data_without_epochs_is_measured_with_and_nothing_is_trained(work: Path) -> None:
    with np.load("data.npz") as archive:
        inputs, labels = torch.from_numpy(archive["x_test"]), archive["y_test"]
    net = small_net()
    with torch.no_grad():
        net[-1].bias -= net(inputs).mean(dim=0)  # the classes come in turn
    torch.export.save(export(net, (1, 8, 8)), "net.pt2")
    shot = prune("net.pt2", "shot", method="kep", n=1)
    measured = prune("net.pt2", "measured", method="kep", n=1, data="data.npz")
    right = [
        float((load_model(path).module()(inputs).argmax(dim=1).numpy() == labels).mean())
        for path in ("net.pt2", measured.model)
    ]
    assert right[0] != right[1]
    assert measured.manifest.accuracy == {"dense": right[0], "one-shot": right[1], "pruned": right[1]}
    assert shot.manifest.accuracy is None
    assert measured.manifest.training is None
    assert measured.manifest.seconds == {}
    assert measured.manifest.data is not None
    assert not (measured.path / "log.csv").exists()
    assert not training_folder(work / "measured").exists()
    for name, weight in load_model(shot.model).parameters().items():
        assert np.array_equal(load_model(measured.model).parameters()[name], weight)
