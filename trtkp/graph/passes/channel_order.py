"""The pass that removes Gathers of channels by giving activations another channel order.

The lowerings ``gather``, ``box`` and ``rectangles`` compute filters in the order of their groups. A Gather behind them
restores the original order, and copies the layer's output to do so. Permuting weights instead costs nothing.

Values that must have the same order form a *class*: the inputs and outputs of channelwise operators, pooling and
depthwise convolutions, and the operands of a residual Add. A class may take any order ``P``, where channel i of the
tensor is channel ``P[i]`` of the original. The filters that write it and the channels, rows or indices that read it
are permuted accordingly. A Gather ``y = x[:, idx]`` between two classes is no copy if

    P_x = idx[P_y]

So every Gather asks for a relation between two classes. Requests are granted in the order of the bytes that they save,
unless they contradict a request that was granted before. Graph inputs and outputs, and what opaque nodes read or write,
keep their order. A grouped convolution accepts only orders that leave every channel in its group.

A Gather that also drops channels (the rows that pad filter groups) can be removed too, if the channels are few. They
then stay in the tensor, and the consumers get weights of zero for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from trtkp.graph.channels import ChannelFlow, Indices, Kind, channel_flow, select_channels
from trtkp.graph.edit import WEIGHT, add_initializer, constant, finish, replace_nodes

__all__ = ["MAX_IDLE", "FoldedGathers", "channel_gathers", "fold_channel_gathers"]

#: Padding channels may stay in a tensor up to this share of its channels, because each costs its consumers as much as
#: any other channel. Groups of 57 filters or more, padded to a multiple of 8, stay below it.
MAX_IDLE = 1 / 8


@dataclass(frozen=True)
class FoldedGathers:
    """The result of the pass.

    Attributes:
        before: Gathers of channels before the pass.
        after: Gathers that remain.
        elements: how many elements less they write for one sample. Dynamic heights and widths count as 1.
    """

    before: int
    after: int
    elements: int


def channel_gathers(model: ir.Model) -> list[ir.Node]:
    """The Gathers that copy channels in another order or number, in graph order."""
    return [node for node, role in channel_flow(model).roles.items() if role.kind is Kind.GATHER]


def fold_channel_gathers(model: ir.Model) -> FoldedGathers:
    """Choose the order of every class of values, permute the weights, and remove the Gathers that then change nothing.

    The model is changed in place. Results are equal up to rounding, as sums over channels run in another order.
    """
    gathers = channel_gathers(model)
    if not gathers:
        return FoldedGathers(0, 0, 0)
    # Requests are ranked by the elements that a Gather writes, so shapes must be known.
    common_passes.ShapeInferencePass()(model)
    written = sum(map(_elements, gathers))
    _compose(gathers)
    finish(model)
    flow = channel_flow(model)
    classes = _Classes(flow)
    links = [node for node, role in flow.roles.items() if role.kind is Kind.GATHER]
    for node in sorted(links, key=_elements, reverse=True):
        indices = classes.grant(node)
        if indices is not None:  # these indices also name the channels that the Gather used to drop
            node.replace_input_with(1, add_initializer(model.graph, f"{node.name}.channels", indices))
    select_channels(model, flow, classes.selection())
    # Where a request was granted, the indices are now 0, 1, 2, ..., and the Gather copies a tensor as it is.
    for node in links:
        (x,) = flow.roles[node].sources
        indices, count = constant(node.inputs[1]), classes.width(x)
        if indices is not None and np.array_equal(indices, np.arange(count)):
            _remove(node)
    left = channel_gathers(model)
    return FoldedGathers(len(gathers), len(left), written - sum(map(_elements, left)))


def _compose(gathers: list[ir.Node]) -> None:
    """Merge a Gather of a Gather into one. The first one stays if something else reads it."""
    for node in gathers:
        first = node.inputs[0].producer() if node.inputs[0] is not None else None
        if first is None or first not in gathers:
            continue
        inner, outer = constant(first.inputs[1]), constant(node.inputs[1])
        assert inner is not None
        assert outer is not None
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        node.replace_input_with(0, first.inputs[0])
        node.replace_input_with(1, add_initializer(graph, f"{node.name}.channels", inner[outer]))


def _elements(gather: ir.Node) -> int:
    shape = gather.outputs[0].shape
    return prod(dim for dim in shape[1:] if isinstance(dim, int)) if shape is not None else 0


def _remove(gather: ir.Node) -> None:
    """Remove a Gather that changes nothing.

    The value that remains takes the name of the layer's output if the Gather belongs to the layer that computes it,
    because the parts of a planned layer are found by that name. Otherwise it keeps the name of the Gather's input.
    """
    x, y, graph = gather.inputs[0], gather.outputs[0], gather.graph
    assert x is not None
    assert isinstance(graph, ir.Graph)
    producer, layer = x.producer(), gather.metadata_props.get(WEIGHT)
    undone = producer is not None and layer is not None and producer.metadata_props.get(WEIGHT) == layer
    if y.is_graph_output() and (producer is None or x.is_graph_output()):
        return
    if undone or y.is_graph_output():
        replace_nodes([gather], [], y, x)
    else:
        ir.convenience.replace_all_uses_with(y, x)
        graph.remove(gather, safe=True)


class _Classes:
    """Classes of values with the same order: a union-find in which every member knows its order from its root's.

    ``P_member = relation[P_root]``. The order of a root is None as long as any order would do.
    """

    def __init__(self, flow: ChannelFlow) -> None:
        self.flow = flow
        self.root: list[int] = []
        self.relation: list[Indices] = []
        self.order: list[Indices | None] = []
        #: Sizes of the groups within which a member's channels must stay; 1 if they must not move.
        self.groups: list[list[int]] = []
        self.size: list[int] = []
        #: Roots whose order is final, because other orders were computed from it.
        self.settled: set[int] = set()
        #: The members that a value consists of: one, or several in a row after a Concat.
        self.parts: dict[ir.Value, tuple[int, ...]] = {}
        for value, channels in flow.channels.items():
            producer = value.producer()
            if producer is None or flow.roles[producer].kind is Kind.OPAQUE:
                self.parts[value] = (self._new(channels.count),)
        for node in flow.roles:
            self._join(node)
        for value in flow.pinned:
            for member in self.parts[value]:
                self._limit(member, 1)

    def width(self, value: ir.Value) -> int:
        """Number of channels that a value has in the end, padding included."""
        return sum(len(self.relation[member]) for member in self.parts[value])

    def selection(self) -> dict[ir.Value, Indices]:
        """The final order of every value whose order changes."""
        found = {}
        for value, members in self.parts.items():
            picked = self._order_of(members)
            if not np.array_equal(picked, np.arange(self.flow.channels[value].count)):
                found[value] = picked
        return found

    def grant(self, gather: ir.Node) -> Indices | None:
        """Relate two classes so that a Gather changes nothing, unless that contradicts what was granted before.

        Returns the Gather's indices, followed by the channels that it drops; None if the request is refused.
        """
        (x,) = self.flow.roles[gather].sources
        (y,) = self.parts[gather.outputs[0]]
        stored, count = constant(gather.inputs[1]), self.flow.channels[x].count
        assert stored is not None
        indices = stored.astype(np.int64) % count
        members, width = self.parts[x], self.width(x)
        if len(np.unique(indices)) != len(indices) or (len(members) > 1 and width != count):
            return None
        # The channels that it drops come behind those that it picks.
        indices = np.concatenate([indices, np.setdiff1d(np.arange(width), indices)])
        if len(self.relation[y]) != width and not self._may_widen(y, width):
            return None
        granted = self._unite(members[0], y, indices) if len(members) == 1 else self._settle(members, y, indices)
        return indices if granted else None

    def _may_widen(self, y: int, width: int) -> bool:
        """Whether a class may take padding channels up to ``width``: few, its first ones, and its order still open."""
        few = 0 < width - self.size[y] <= MAX_IDLE * self.size[y]
        return few and len(self.relation[y]) == self.size[y] and self.order[self.root[y]] is None

    def _new(self, size: int, group: int | None = None) -> int:
        member = len(self.root)
        self.root.append(member)
        self.relation.append(np.arange(size))
        self.order.append(None)
        self.groups.append([])
        self.size.append(size)
        if group is not None:
            self._limit(member, group)
        return member

    def _join(self, node: ir.Node) -> None:
        flow, role = self.flow, self.flow.roles[node]
        output = node.outputs[0]
        if role.kind is Kind.OPAQUE:
            return
        count = flow.channels[output].count
        if role.kind in (Kind.MIX, Kind.GATHER):
            self.parts[output] = (self._new(count),)
        elif role.kind is Kind.CONCAT:
            self.parts[output] = tuple(part for source in role.sources for part in self.parts[source])
        elif role.kind is Kind.GROUPED:
            groups = node.attributes.get_int("group", 1)
            source = role.sources[0] if role.sources else None
            # A depthwise convolution with one filter per channel works in any order; its weights follow.
            if source is not None and groups == count == flow.channels[source].count:
                self.parts[output] = self.parts[source]
                return
            # In any other grouped convolution, filters and channels may move within their group only. A concatenated
            # input must not move at all, as a group may span several of its parts.
            self.parts[output] = (self._new(count, count // groups),)
            if source is not None:
                members = self.parts[source]
                for member in members:
                    self._limit(member, flow.channels[source].count // groups if len(members) == 1 else 1)
        else:
            first, *others = (self.parts[source] for source in role.sources)
            self.parts[output] = first
            for other in others:
                if [self.size[a] for a in first] == [self.size[b] for b in other]:
                    for a, b in zip(first, other, strict=True):
                        self._unite(a, b, np.arange(self.size[a]))
                else:  # operands that are concatenated from parts of different sizes
                    for member in (*first, *other):
                        self._limit(member, 1)

    def _limit(self, member: int, group: int) -> None:
        """Keep the channels of a member within groups of this size."""
        self.groups[member].append(group)
        root = self.root[member]
        self._anchor(root)

    def _anchor(self, root: int) -> None:
        """Fix the order of a class. It is the original one if the class has none yet."""
        if self.order[root] is None:
            self.order[root] = np.arange(len(self.relation[root]))

    def _members(self, root: int) -> list[int]:
        return [member for member, other in enumerate(self.root) if other == root]

    def _order_of(self, members: tuple[int, ...]) -> Indices:
        """The order of a value that consists of these members. Padding channels come last."""
        total = sum(self.size[member] for member in members)
        pieces, offset = [], 0
        for member in members:
            order = self.order[self.root[member]]
            order = self.relation[member] if order is None else self.relation[member][order]
            real = order < self.size[member]
            pieces.append(np.where(real, order + offset, total + order - self.size[member]))
            offset += self.size[member]
        return np.concatenate(pieces)

    def _settle(self, members: tuple[int, ...], y: int, indices: Indices) -> bool:
        """Relate a concatenated value to a class, as `_unite` does. The orders of its parts are final from now on."""
        root = self.root[y]
        if any(self.root[member] == root for member in members):
            return False
        for member in members:
            self._anchor(self.root[member])
        self._widen(root, len(indices))
        order = np.argsort(self.relation[y])[np.argsort(indices)[self._order_of(members)]]
        if not self._admits(root, order):
            return False
        self.order[root] = order
        self.settled.update(self.root[member] for member in (*members, y))
        return True

    def _unite(self, x: int, y: int, indices: Indices) -> bool:
        """Relate two classes by ``P_x = indices[P_y]``; False if that is impossible."""
        rx, ry = self.root[x], self.root[y]
        if len(indices) != len(self.relation[y]):
            if rx == ry:
                return False
            self._widen(ry, len(indices))
        if rx == ry:
            return np.array_equal(self.relation[x], indices[self.relation[y]])
        link = np.argsort(self.relation[x])[indices[self.relation[y]]]  # P_rx = link[P_ry]
        order_x, order_y = self.order[rx], self.order[ry]
        if order_x is not None:
            # The order of x is fixed: y follows it, or else x follows the order of y, or else the request is refused.
            candidate = np.argsort(link)[order_x]
            if self._admits(ry, candidate):
                self.order[ry] = candidate
            elif order_y is None or not self._admits(rx, link[order_y]):
                return False
        for member in self._members(rx):
            self.relation[member] = self.relation[member][link]
            self.root[member] = ry
        if rx in self.settled:
            self.settled.add(ry)
        return True

    def _widen(self, root: int, width: int) -> None:
        """Add padding channels to all members of a class, up to ``width``."""
        for member in self._members(root):
            more = np.arange(len(self.relation[member]), width)
            self.relation[member] = np.concatenate([self.relation[member], more])

    def _admits(self, root: int, order: Indices) -> bool:
        """Whether a class may take an order: it is not final, and every member's channels stay in their groups."""
        have = self.order[root]
        if have is not None and np.array_equal(have, order):
            return True
        if root in self.settled:
            return False
        for member in self._members(root):
            picked = self.relation[member][order]
            for group in self.groups[member]:
                if not np.array_equal(picked // group, np.arange(len(picked)) // group):
                    return False
        return True
