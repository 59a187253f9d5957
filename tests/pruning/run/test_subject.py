"""Models that cannot be trained, or not exported again, are refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from examples.nets import export
from trtkp.errors import InputError
from trtkp.pruning.run import PruneOptions, prune, training_folder
from trtkp.pruning.train.recipe import Recipe, Training

from .conftest import small_net


def test_fixed_batch_is_refused(work: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    torch.export.save(export(net, (1, 8, 8), batch=(2, 2)), work / "fixed.pt2")
    options = PruneOptions(training=Training(finetune=Recipe(epochs=1)))
    with pytest.raises(InputError, match="takes batches of 2 only"):
        prune("fixed.pt2", "p", options=options, data="data.npz")


@pytest.mark.parametrize("method", ["dppnet", "channels"])
def test_sizes_that_no_other_net_can_be_exported_for_are_refused_before_anything_is_trained(
    work: Path, method: str
) -> None:
    """Multiples of four: the size is no symbol of its own."""
    torch.export.save(export(small_net(), (1, 8, 8), size_step=4), "sized.pt2")
    stage = Recipe(epochs=1, batch=30)
    towards = stage if method == "dppnet" else Recipe()
    options = PruneOptions(input_shape=["1x1x8x8"], training=Training(regularise=towards, finetune=stage))
    phases: list[str] = []
    with pytest.raises(InputError) as error:
        prune(
            "sized.pt2", "p", method=method, options=options, data="data.npz", progress=lambda *p: phases.append(p[0])
        )
    assert str(error.value).startswith("sized.pt2: an input has a size 4*")
    assert str(error.value).endswith("; export the model with a dynamic batch alone")
    assert phases == []
    assert not training_folder(Path("p")).exists()
