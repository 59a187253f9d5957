"""The pass that removes dead parts of a pruned net: filters that are constant, and channels that nobody reads.

It works on the masked graph with batch normalisation folded, and asks two questions about every channel:

- *Is it constant?* A filter without weights gives its bias at every position, and so does a filter that reads only
  constant channels. The pass follows constants forward, through activations, pooling, sums and Concat.
- *Does anyone need it?* A convolution needs the channels for which its needed filters have weights. It does not need a
  constant channel that can be folded exactly. The pass follows needs backward, until nothing changes:

      sum_c w_c * x_c + b  =  sum_(c varies) w_c * x_c + (b + sum_(c constant) x_c sum_taps w_c)

With padding, the plane of a constant channel is surrounded by zeros, so only the constant 0 can be folded into the
bias. All other constant channels of the input are then folded into *one* of them, k, whose plane has the same edges:

      w_k += w_c · x_c / x_k

Channels that are linked by a residual Add, a gate or a depthwise convolution are removed together or not at all. The
same holds for the groups of a grouped convolution, and for nodes that share a weight. If all channels of an operand of
an Add are constant, the operand becomes an initialiser, and the branch that computed it is removed. No tensor becomes
empty: a value that nobody needs keeps one channel.

The result is exact up to rounding, for finite activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.channels import ChannelFlow, ConstantEditor, Indices, Kind, channel_flow, filter_axis, select_channels
from trtkp.graph.constants import channel_constants, is_uniform, mixing_weight
from trtkp.graph.edit import add_initializer, constant, finish, input_at, same_shape, weight_name
from trtkp.graph.passes.batch_norm import fold_batch_norm
from trtkp.index.index_set import IndexSet, from_mask

__all__ = ["DeadParts", "Removed", "remove_dead"]

#: A constant channel that stays anyway takes over constants up to this many times its own. Folding multiplies a weight
#: by the ratio x_c / x_k, and an unbounded ratio could take weights out of the range of fp16.
_MAX_RATIO = 16.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Removed:
    """What was removed from one layer.

    Attributes:
        name: parameter name of the weight.
        node: name of the node.
        filters: number of filters removed.
        channels: number of channels removed, per ONNX group.
        params: parameters removed, counted as in the dense net.
        macs: MACs removed for one sample, counted as in the dense net.
    """

    name: str
    node: str
    filters: int
    channels: int
    params: int
    macs: int


@dataclass(frozen=True)
class DeadParts:
    """The result of the pass.

    Attributes:
        layers: the layers that lost something, in graph order.
        kept: name of every convolution that is left to its remaining filters and channels.
    """

    layers: tuple[Removed, ...]
    kept: Mapping[str, tuple[Indices, Indices]]

    @property
    def filters(self) -> int:
        """Number of filters removed. Those of a shared weight count once."""
        return sum({part.name: part.filters for part in self.layers}.values())

    @property
    def channels(self) -> int:
        """Number of channels removed from the layers that read them. Those of a shared weight count once."""
        return sum({part.name: part.channels for part in self.layers}.values())

    @property
    def params(self) -> int:
        """Number of parameters removed. A shared weight counts once."""
        return sum({part.name: part.params for part in self.layers}.values())

    @property
    def macs(self) -> int:
        """MACs removed for one sample."""
        return sum(part.macs for part in self.layers)

    def restrict(self, model: ir.Model, index_sets: Mapping[str, IndexSet]) -> dict[str, IndexSet]:
        """The index sets of the layers that are left.

        If a constant was folded into a channel that a filter did not list, the filter lists it from now on. A 2:4
        refinement is dropped, because its quads are not those of the remaining channels; the weights that it pruned
        become zeros in the lists.

        Args:
            model: the model that `remove_dead` changed.
            index_sets: index sets of the source model, by parameter name.
        """
        masks: dict[str, npt.NDArray[np.bool_]] = {}
        groups: dict[str, int] = {}
        for node in model.graph:
            name = weight_name(node) if node.op_type == "Conv" else None
            weight = constant(input_at(node, 1))
            if name is None or weight is None or name not in index_sets or str(node.name) not in self.kept:
                continue
            filters, channels = self.kept[str(node.name)]
            mask = index_sets[name].list_mask()[np.ix_(filters, channels)] | (weight != 0)
            masks[name] = masks[name] | mask if name in masks else mask
            groups[name] = node.attributes.get_int("group", 1)
        return {name: from_mask(mask, groups[name]) for name, mask in masks.items()}


def remove_dead(model: ir.Model, places: Mapping[str, int] | None = None) -> DeadParts:
    """Remove the dead parts of a masked graph of standard operators, in place.

    Args:
        model: the graph, with batch normalisation folded where possible.
        places: node name to the number of output positions for one sample (P·Q), to count MACs. Nodes that are not in
            it, such as fully connected layers, have 1.
    """
    before = _layers(model)
    # An Add that lost an operand may become a bias, which makes further operands constant.
    while _cut_constant_operands(model):
        fold_batch_norm(model)
    flow = channel_flow(model)
    constants = channel_constants(model, flow)
    needs = _Needs(flow, constants)
    kept = needs.kept()
    selection = {value: np.flatnonzero(wanted) for value, wanted in kept.items() if not wanted.all()}
    record = {}
    for node, role in flow.roles.items():
        if role.kind in (Kind.MIX, Kind.GROUPED) and node.op_type == "Conv":
            weight = constant(node.inputs[1])
            assert weight is not None
            whole = role.kind is Kind.GROUPED or not role.sources  # groups are removed whole, so C stays the same
            channels = np.arange(weight.shape[1]) if whole else np.flatnonzero(kept[role.sources[0]])
            record[str(node.name)] = np.flatnonzero(kept[node.outputs[0]]), channels
    _fold_constants(model, needs, kept)
    select_channels(model, flow, selection)
    after = _layers(model)
    shared = {layer.name: layer for layer in after.values()}
    removed = []
    for name, layer in before.items():
        left = after.get(name)
        part = layer.without(name, left or shared.get(layer.name))
        count = (places or {}).get(name, 1)
        macs = count * (layer.weights - (left.weights if left is not None else 0))
        if macs:
            removed.append(replace(part, macs=macs))
    return DeadParts(tuple(removed), record)


@dataclass(frozen=True)
class _Layer:
    name: str
    filters: int
    channels: int
    weights: int
    biases: int

    def without(self, node: str, rest: _Layer | None) -> Removed:
        """What was removed if ``rest`` is left."""
        left = rest or _Layer(self.name, 0, 0, 0, 0)
        return Removed(
            name=self.name,
            node=node,
            filters=self.filters - left.filters,
            channels=self.channels - left.channels,
            params=self.weights - left.weights + max(0, self.biases - left.biases),
            macs=0,
        )


def _layers(model: ir.Model) -> dict[str, _Layer]:
    """All layers with a stored weight, by node name."""
    found = {}
    for node in model.graph:
        weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
        if node.domain or weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        if weight.ndim < 2:
            continue
        axis = filter_axis(node)
        filters, channels = weight.shape[axis], weight.shape[1 - axis]
        biases = bias.size if bias is not None else 0
        found[str(node.name)] = _Layer(weight_name(node) or str(node.name), filters, channels, weight.size, biases)
    return found


def _cut_constant_operands(model: ir.Model) -> bool:
    """Replace operands of Adds whose channels are all constant. Returns False if there were none."""
    flow = channel_flow(model)
    constants = channel_constants(model, flow)
    found = False
    for node, role in flow.roles.items():
        if node.op_type != "Add" or role.kind is not Kind.SAME or len(role.sources) != 2:
            continue
        fixed = [index for index, source in enumerate(role.sources) if not np.isnan(constants[source]).any()]
        if len(fixed) != 1 or not same_shape(*role.sources):  # the operand may broadcast the other one
            continue
        (index,) = fixed
        operand, channels = role.sources[index], flow.channels[role.sources[index]]
        if not constants[operand].any() and not node.outputs[0].is_graph_output():
            other = node.inputs[1 - index]
            assert other is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], other)
        else:
            assert operand.dtype is not None
            array = np.repeat(constants[operand], channels.block).astype(operand.dtype.numpy())
            array = array.reshape(1, -1, *(1,) * (channels.rank - 2))
            node.replace_input_with(index, add_initializer(model.graph, f"{operand.name}.constant", array))
        found = True
    finish(model)
    return found


def _fold_constants(model: ir.Model, needs: _Needs, kept: Mapping[ir.Value, npt.NDArray[np.bool_]]) -> None:
    """Move the contribution of removed constant channels into the bias, or into the constant channel that stays.

    A channel that stays only because no tensor may be empty is *idle*: its filter becomes zero, and so do the weights
    that read it.
    """
    editor = ConstantEditor(model.graph)
    for node, role in needs.flow.roles.items():
        if role.kind is not Kind.MIX or not role.sources:
            continue
        source, output = role.sources[0], node.outputs[0]
        values, stays = needs.constants[source], kept[source] & ~needs.idle[needs.labels[source]]
        # Removed channels whose constant is not 0, and for which a filter that stays has weights.
        gone = np.flatnonzero(~stays & ~np.isnan(values) & (np.nan_to_num(values) != 0))
        weight, give_back = mixing_weight(node, needs.flow.channels[source].block)
        idle = needs.idle[needs.labels[output]]
        gone = gone[(weight[kept[output] & ~idle][:, gone] != 0).any(axis=(0, 2))]
        if not len(gone) and not idle.any() and not needs.idle[needs.labels[source]].any():
            continue
        folded = np.where(idle[:, None, None], 0, weight.astype(np.float64))
        if len(gone) and is_uniform(node):
            shift = folded[:, gone].sum(axis=2) @ values[gone]
            _add_to_bias(model.graph, editor, node, shift, weight.dtype)
        elif len(gone):
            k = _representative(needs.foldable(source), stays)
            folded[:, k] += np.einsum("fct,c->ft", folded[:, gone], values[gone] / values[k])
        folded[:, ~stays] = 0
        editor.put(node, 1, give_back(folded.astype(weight.dtype)), (node,))


def _add_to_bias(graph: ir.Graph, editor: ConstantEditor, node: ir.Node, shift: Floats, dtype: Any) -> None:
    bias = constant(input_at(node, 2))
    total = (shift + (0 if bias is None else bias.astype(np.float64).ravel())).astype(dtype)
    if bias is not None:
        editor.put(node, 2, total, (node,))
        return
    node.resize_inputs(3)
    node.replace_input_with(2, add_initializer(graph, f"{weight_name(node)}.bias", total))


def _representative(values: Floats, kept: npt.NDArray[np.bool_]) -> int:
    """The constant channel into which the others are folded: the largest, or one that stays anyway and is large enough.

    The largest constant keeps the ratios x_c / x_k at most 1. One that stays anyway saves a channel.
    """
    size = np.where(np.isnan(values), 0, np.abs(values))
    among_kept = np.where(kept, size, 0)
    return int(np.argmax(among_kept if among_kept.max() * _MAX_RATIO >= size.max() else size))


class _Needs:
    """Which channels are needed. Channels that must be kept or removed together have the same label (union-find)."""

    def __init__(self, flow: ChannelFlow, constants: Mapping[ir.Value, Floats]) -> None:
        self.flow = flow
        self.constants = constants
        self.parent = np.zeros(0, np.int64)
        self.labels: dict[ir.Value, Indices] = {}
        self.weighted: dict[str, ir.Node] = {}
        for value, channels in flow.channels.items():
            if value.producer() is None:
                self.labels[value] = self._new(channels.count)
        for node in flow.roles:
            self._label(node)
        self.labels = {value: self._roots(labels) for value, labels in self.labels.items()}
        self.needed = np.zeros(len(self.parent), bool)
        self.idle = np.zeros(len(self.parent), bool)
        for value in flow.pinned:
            self.needed[self.labels[value]] = True
        for node, role in flow.roles.items():
            if role.kind is Kind.GROUPED and not role.sources:
                self.needed[self.labels[node.outputs[0]]] = True
        self.reads = {
            node: (mixing_weight(node, flow.channels[role.sources[0]].block)[0] != 0).any(axis=2)
            for node, role in flow.roles.items()
            if role.kind is Kind.MIX and role.sources
        }  # [F, C]

    def kept(self) -> dict[ir.Value, npt.NDArray[np.bool_]]:
        """The needed channels of every value, bool [C], at least one of each."""
        while True:
            self._spread()
            empty = [labels[0] for labels in self.labels.values() if not self.needed[labels].any()]
            if not empty:
                return {value: self.needed[labels] for value, labels in self.labels.items()}
            # One value at a time, as others may share the label, and then keep a channel too.
            self.needed[empty[-1]] = self.idle[empty[-1]] = True

    def foldable(self, value: ir.Value) -> Floats:
        """The constants of a value into which others may be folded; NaN elsewhere."""
        return np.where(self.idle[self.labels[value]], np.nan, self.constants[value])

    def _spread(self) -> None:
        count = -1
        while count != (count := int(self.needed.sum())):
            for node in reversed(self.reads):
                self._read(node)

    def _read(self, node: ir.Node) -> None:
        source = self.flow.roles[node].sources[0]
        values, labels = self.constants[source], self.labels[source]
        out = self.labels[node.outputs[0]]
        # A filter with a constant output needs no channel: its constant is folded into what reads it.
        alive = self.needed[out] & ~self.idle[out] & np.isnan(self.constants[node.outputs[0]])
        wanted = self.reads[node][alive].any(axis=0)
        varies = np.isnan(values)
        self.needed[labels[wanted & varies]] = True
        # Behind padding, constants other than 0 cannot become a bias: one of them must stay for all of them.
        if not is_uniform(node) and (wanted & ~varies & (np.nan_to_num(values) != 0)).any():
            self.needed[labels[_representative(self.foldable(source), self.needed[labels])]] = True

    def _label(self, node: ir.Node) -> None:
        role, output = self.flow.roles[node], node.outputs[0]
        if role.kind is Kind.OPAQUE:
            for value in node.outputs:
                if value in self.flow.channels:
                    self.labels[value] = self._new(self.flow.channels[value].count)
            return
        sources = [self.labels[source] for source in role.sources]
        if role.kind is Kind.CONCAT:
            self.labels[output] = np.concatenate(sources)
        elif role.kind is Kind.GATHER:
            indices = constant(node.inputs[1])
            assert indices is not None
            self.labels[output] = sources[0][indices]
        elif role.kind in (Kind.SAME, Kind.FLATTEN):
            self.labels[output] = sources[0]
            for other in sources[1:]:
                self._unite(sources[0], other)
        else:
            self.labels[output] = self._new(self.flow.channels[output].count)
            if role.kind is Kind.GROUPED:
                groups = node.attributes.get_int("group", 1)
                for part in (*sources, self.labels[output]):
                    by_group = part.reshape(groups, -1)
                    self._unite(self.labels[output].reshape(groups, -1)[:, :1].repeat(by_group.shape[1], 1), by_group)
            self._tie(node, sources)

    def _tie(self, node: ir.Node, sources: list[Indices]) -> None:
        """Tie the channels of nodes that share a weight. Where they do not match, all of them must stay."""
        name = weight_name(node)
        first = self.weighted.setdefault(name, node) if name is not None else node
        if first is node:
            return
        twins = [self.labels[source] for source in self.flow.roles[first].sources]
        pairs = [(self.labels[first.outputs[0]], self.labels[node.outputs[0]]), *zip(twins, sources, strict=False)]
        fits = len(twins) == len(sources) and all(len(a) == len(b) for a, b in pairs)
        for a, b in pairs if fits else ():
            self._unite(a, b)
        if not fits:
            self.flow.pinned.update(
                value for n in (first, node) for value in (n.outputs[0], *self.flow.roles[n].sources)
            )

    def _new(self, count: int) -> Indices:
        labels = np.arange(len(self.parent), len(self.parent) + count)
        self.parent = np.concatenate([self.parent, labels])
        return labels

    def _roots(self, labels: Indices) -> Indices:
        roots = self.parent[labels]
        while not np.array_equal(roots, further := self.parent[roots]):
            roots = further
        return roots

    def _unite(self, left: Indices, right: Indices) -> None:
        for a, b in zip(self._roots(left.ravel()), self._roots(right.ravel()), strict=True):
            roots = self._root(int(a)), self._root(int(b))  # an earlier pair may have moved these roots
            self.parent[max(roots)] = min(roots)

    def _root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = int(self.parent[label])
        return label
