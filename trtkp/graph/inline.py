"""Inlining of functions, in time linear in the nodes that they become."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> None:
    """Replace every call of a function by its body, in place. Names that are taken get a number, as in onnx-ir.

    Raises:
        Exception: a function calls itself, takes a graph as an attribute, or needs another opset than the model.
    """
    _Inline()(model)


class _Inline(common_passes.InlinePass):
    """onnx-ir's pass, which counts up from 2 for every name of every call: 32,768 calls of one function took minutes.

    Here the body has free names already when the pass looks for them. They are those that it would have found.
    """

    def _reset(self, model: ir.Model) -> None:
        super()._reset(model)
        self._last: dict[tuple[int, str], int] = {}

    def _instantiate_call(self, node: ir.Node, call_site_id: str):  # type: ignore[no-untyped-def]  # onnx-ir's types
        body = list(self._functions[node.op_identifier()])
        # The nodes of subgraphs are renamed in an order of their own.
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
               for inner in body for attribute in inner.attributes.values()):  # fmt: skip
            return super()._instantiate_call(node, call_site_id)
        values = [value for inner in body for value in inner.outputs]
        old = [inner.name for inner in body], [value.name for value in values]
        try:
            given: set[str] = set()
            for inner in body:
                inner.name = self._free(0, inner.name or "node", self._used_node_names, given)
            given = set()
            for value in values:
                value.name = self._free(1, value.name or "val", self._used_value_names, given)
            return super()._instantiate_call(node, call_site_id)
        finally:
            for inner, name in zip(body, old[0], strict=True):
                inner.name = name
            for value, name in zip(values, old[1], strict=True):
                value.name = name

    def _free(self, kind: int, name: str, used: Collection[str], given: set[str]) -> str:
        """The first free name among NAME, NAME_2, NAME_3, ...; numbers that were tried before are taken."""
        number = self._last.get((kind, name), 1)
        free = name if number == 1 else f"{name}_{number}"
        while free in used or free in given:
            number += 1
            free = f"{name}_{number}"
        self._last[kind, name] = number
        given.add(free)
        return free
