"""The pass that lets BatchNormalization use the statistics of the batch, as in training.

The stored statistics belong to the dense weights, and the first steps of any fine-tuning correct them. With the stored
statistics a net that lost half of its MACs scores near chance, and candidates cannot be told apart; with those of the
batch they can (docs/guides/search.md).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkp.graph.edit import add_initializer, constant, finish, replace_nodes

__all__ = ["use_batch_statistics"]


def use_batch_statistics(model: ir.Model) -> int:
    """Replace every BatchNormalization of images ``[N, C, H, W]``; returns how many were replaced.

        y = gamma (x - mean_NHW(x)) / std_NHW(x) + beta

    Nodes whose gamma or beta is computed stay as they are. Run it before `fold_batch_norm`, which leaves none.
    """
    replaced = 0
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        gamma, beta = (constant(value) for value in node.inputs[1:3])
        x = node.inputs[0]
        if gamma is None or beta is None or x is None or (x.shape is not None and len(x.shape) != 4):
            continue
        normal = ir.node("MeanVarianceNormalization", [x], {"axes": [0, 2, 3]}, name=f"{node.name}/normal")
        factor, addend = (
            add_initializer(model.graph, f"{node.name}/{name}", np.reshape(values, (1, -1, 1, 1)))
            for name, values in (("gamma", gamma), ("beta", beta))
        )
        scaled = ir.node("Mul", [normal.outputs[0], factor], name=f"{node.name}/scaled")
        shifted = ir.node("Add", [scaled.outputs[0], addend], name=f"{node.name}/shifted")
        replace_nodes([node], [normal, scaled, shifted], node.outputs[0], shifted.outputs[0])
        replaced += 1
    finish(model)
    return replaced
