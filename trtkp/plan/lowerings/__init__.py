"""Lowerings: the ways to write a packed convolution in standard operators. All of them are exact.

`LOWERINGS` is the one table of them. It says what each lowering is, when it applies, how it is built, and what work it
does compared with the dense layer. `trtkp.plan.cost` turns that work into a predicted time.

    >>> from trtkp.plan.lowerings import LOWERINGS
    >>> list(LOWERINGS)[:5]
    ['dense', 'box', 'rectangles', 'taps', 'gather']
"""

from __future__ import annotations

from trtkp.graph.packing import unpack
from trtkp.plan.lowerings.gather import GATHER, MAX_GATHER, REGROUPED, SPLIT
from trtkp.plan.lowerings.lowering import Built, Lowering, LoweringContext, lower
from trtkp.plan.lowerings.stripes import BOX, MAX_GROUPS, RECTANGLES
from trtkp.plan.lowerings.taps import TAPS
from trtkp.plan.lowerings.work import Work

__all__ = ["LOWERINGS", "MAX_GATHER", "MAX_GROUPS", "PLUGIN", "Lowering", "LoweringContext", "lower"]


def _build_dense(context: LoweringContext) -> Built:
    return context.conv(context.x, unpack(context.packed), context.bias, groups=context.packed.groups), None


DENSE = Lowering(
    "dense", "one Conv with zeros in its weight", lambda packed: None, _build_dense, lambda packed: Work(1.0)
)

#: The candidate that is no lowering: the packed operator stays in the graph, and our plugin computes it in a TensorRT
#: engine.
PLUGIN = "plugin"

LOWERINGS: dict[str, Lowering] = {
    lowering.name: lowering for lowering in (DENSE, BOX, RECTANGLES, TAPS, GATHER, *REGROUPED, SPLIT)
}
