"""What V-SKP prunes beside the kernels of convolutions, and gives back after the fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.model.layers import matrix_names
from trtkp.pruning.method import Masks
from trtkp.pruning.run.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = ["matrix_masks", "reactivate_layers"]


def matrix_masks(subject: Subject, module: torch.nn.Module | None, ratio: float) -> Masks:
    """Masks of the weights of fully connected layers, bool [out, in].

    Args:
        subject: the model.
        module: the net that is trained; of a model from PyTorch only parameters are pruned, no buffers.
        ratio: share of the weights that go.
    """
    from trtkp.pruning.methods.vskp import mask_of_matrix

    weights = subject.source.parameters()
    names = [name for name in matrix_names(subject.graph) if name in weights]
    if subject.source.format != "onnx":
        parameters = dict((module or subject.source.module()).named_parameters(remove_duplicate=False))
        names = [name for name in names if name in parameters]
    return {name: mask_of_matrix(weights[name], ratio) for name in names}


def reactivate_layers(
    subject: Subject, module: torch.nn.Module, masks: Masks, before: Mapping[str, npt.NDArray[Any]]
) -> dict[str, int]:
    """Let layers read the filters before them that the fine-tune left unmoved; changes masks and module.

    Args:
        subject: the model, with the weights as they were trained densely.
        module: as the fine-tune left it.
        masks: of the pruned layers.
        before: weights before the fine-tune.

    Returns:
        Kernels that came back, by layer.
    """
    import torch

    from trtkp.graph.chains import next_convolutions
    from trtkp.pruning.methods.vskp import reactivate, unmoved_filters
    from trtkp.pruning.regulariser import layer_parameters, layer_weights

    tuned, parameters = layer_weights(module, subject.layers), layer_parameters(module, subject.layers)
    restored = {}
    for name, following in next_convolutions(subject.graph).items():
        if name not in masks or following not in masks:
            continue
        channels = unmoved_filters(before[name], tuned[name])
        mask, weight = reactivate(channels, masks[following], subject.weights[following], tuned[following])
        if changed := int((mask & ~masks[following])[:, :, 0, 0].sum()):
            restored[following] = changed
            masks[following] = mask
            with torch.no_grad():
                parameters[following].copy_(torch.from_numpy(weight))
    return restored
