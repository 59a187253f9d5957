"""Check and rebuild the JSON of an exported program before PyTorch sees it.

PyTorch's deserialiser trusts this JSON in many places. It evaluates size expressions, puts guards and names into
source code that it executes, finds operators by their attribute path from ``torch``, and imports modules to find enum
classes of tree specifications. Some operators write files.

So the JSON is never passed on as it is. Every part that a network needs is checked and copied. The rest (guards, stack
traces, custom metadata, inner call signatures) is dropped.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable
from typing import Any

from trtkp.model.expressions import check_expression, is_size

__all__ = ["MAX_DIM", "PATTERN_CONV", "clean_program", "clean_tensor_meta", "is_parameter_name", "parse_json"]

#: Largest dimension of a tensor. No network has a longer one, and products of dimensions stay small enough to compute.
MAX_DIM = 1 << 40

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_PARAMETER = re.compile(r"(?!__)[A-Za-z0-9_-]{1,128}(\.(?!__)[A-Za-z0-9_-]{1,128}){0,63}")
# Names that generated code uses itself: a value of that name would hide what the code refers to.
_TAKEN = frozenset({"torch", "operator", "math", "self", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"})
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.([A-Za-z0-9_]{1,100})\.(?!__)([A-Za-z0-9_]{1,60})")
#: The one operator of ours that a program may hold (`trtkp.pruning.methods.dppnet_op`).
PATTERN_CONV = "torch.ops.trtkp.dynamic_pattern_conv.default"
# save and from_file access files. The others change which memory a tensor refers to.
_REFUSED = frozenset({"save", "from_file", "set_", "set_data", "resize_", "_resize_output_", "data_ptr", "from_blob"})
_DUNDER = frozenset({"__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__iand__", "__ior__", "__ixor__"})
_SCALAR_FUNCTIONS = frozenset(
    [
        f"_operator.{name}"
        for name in [
            "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge",
            "and_", "or_", "not_", "pos", "getitem",
        ]
    ]
    + [f"math.{name}" for name in ["ceil", "floor", "trunc", "sqrt", "pow"]]
    + [f"torch.sym_{name}" for name in ["max", "min", "float", "int", "not", "ite"]]
)  # fmt: skip
# The strings that operators of networks take: modes, roundings and reductions. None of them is a path.
_WORDS = frozenset(
    [
        "none", "tanh", "same", "valid", "constant", "reflect", "replicate", "circular", "sum", "mean", "prod",
        "amax", "amin", "floor", "trunc", "ij", "xy", "nearest", "bilinear", "bicubic", "linear", "area", "left",
        "right", "backward", "forward", "ortho", "zeros", "border", "default", "max",
    ]
)  # fmt: skip
_EQUATION = re.compile(r"[A-Za-z.]{0,40}(,[A-Za-z.]{0,40}){0,8}(->[A-Za-z.]{0,40})?")
_CONTAINERS = {"builtins.tuple": False, "builtins.list": False, "builtins.dict": True, "collections.OrderedDict": True}
_VERIFIERS = frozenset({"ATEN", "TRAINING"})


def parse_json(data: bytes | bytearray) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: it is no JSON, is nested too deep, or gives a name twice in one object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name is given twice")
        return result

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deep") from None


def is_parameter_name(name: object) -> bool:
    """Whether a value is a dotted parameter name that is safe in generated code."""
    return isinstance(name, str) and _PARAMETER.fullmatch(name) is not None


def clean_program(data: Any) -> dict[str, Any]:
    """The parts of an exported program's JSON that loading needs, with the CPU as every device.

    Raises:
        ValueError: the program holds something that no network needs and that the deserialiser must not see. The
        message
            says what.
    """
    module = data["graph_module"]
    return {
        "graph_module": {
            "graph": _graph(module["graph"]),
            "signature": _signature(module["signature"]),
            "module_call_graph": [_call_entry(module["module_call_graph"][0])],
            "metadata": {},
        },
        "opset_version": {},
        "range_constraints": {
            _expect(is_size, key, "size symbol"): {
                "min_val": _optional_int(value["min_val"]),
                "max_val": _optional_int(value["max_val"]),
            }
            for key, value in data["range_constraints"].items()
        },
        "schema_version": {key: _integer(data["schema_version"][key]) for key in ("major", "minor")},
        "verifiers": [_expect(_VERIFIERS.__contains__, name, "verifier") for name in data.get("verifiers", [])],
        "torch_version": "",
        "guards_code": [],
    }


def clean_tensor_meta(meta: Any) -> dict[str, Any]:
    """A tensor's dtype, sizes and strides. Its device becomes the CPU."""
    return {
        "dtype": _integer(meta["dtype"]),
        "sizes": [_sym(size, "as_int", _dim) for size in meta["sizes"]],
        "requires_grad": _boolean(meta["requires_grad"]),
        "device": {"type": "cpu", "index": None},
        "strides": [_sym(stride, "as_int", _dim) for stride in meta["strides"]],
        "storage_offset": _sym(meta["storage_offset"], "as_int", _dim),
        "layout": _expect((7).__eq__, meta["layout"], "layout"),
    }


def _graph(graph: Any) -> dict[str, Any]:
    if graph.get("custom_obj_values"):
        raise ValueError("it holds custom objects")
    return {
        "inputs": [_argument(arg) for arg in graph["inputs"]],
        "outputs": [_argument(arg) for arg in graph["outputs"]],
        "nodes": [_node(node) for node in graph["nodes"]],
        "tensor_values": {_name(key): clean_tensor_meta(value) for key, value in graph["tensor_values"].items()},
        "sym_int_values": {_name(k): _sym(v, "as_int", _dim) for k, v in graph["sym_int_values"].items()},
        "sym_bool_values": {_name(k): _sym(v, "as_bool", _boolean) for k, v in graph["sym_bool_values"].items()},
        "sym_float_values": {
            _name(k): _sym(v, "as_float", _number) for k, v in graph.get("sym_float_values", {}).items()
        },
        "is_single_tensor_return": _boolean(graph.get("is_single_tensor_return", False)),
        "custom_obj_values": {},
    }


def _node(node: Any) -> dict[str, Any]:
    target = node["target"]
    _check_target(target)
    name = node.get("name")
    return {
        "target": target,
        "inputs": [
            {
                # An argument's name becomes a keyword in generated code.
                "name": _name(item["name"]) if item["name"] != "" else "",
                "arg": _argument(item["arg"], einsum=".einsum." in target),
                "kind": _optional_int(item.get("kind")),
            }
            for item in node["inputs"]
        ],
        "outputs": [_argument(arg) for arg in node["outputs"]],
        "metadata": {},
        "is_hop_single_tensor_return": node.get("is_hop_single_tensor_return") is not False,
        "name": None if name is None else _name(name),
    }


def _check_target(target: Any) -> None:
    if isinstance(target, str) and target in _SCALAR_FUNCTIONS:
        return
    if isinstance(target, str) and target.startswith("torch.ops.higher_order."):
        raise ValueError(
            f"{ascii(target)[23:80].strip(chr(39))} is not supported: leave no_grad, autocast and cond out of forward"
        )
    if target == PATTERN_CONV:
        return
    match = _OPERATOR.fullmatch(target) if isinstance(target, str) else None
    name = match.group(2) if match else ""
    if not match or name in _REFUSED or (name.startswith("__") and name not in _DUNDER):
        raise ValueError(f"operator {ascii(target)[:80]} is not one of PyTorch's tensor operators")


def _argument(argument: Any, einsum: bool = False) -> dict[str, Any]:
    ((kind, value),) = argument.items()  # a union with one entry; anything else fails here
    clean = _ARGUMENTS.get(kind)
    if kind in ("as_string", "as_strings") and einsum:
        return {kind: _expect(_is_equation, value, "equation")}
    if clean is None:
        raise ValueError(f"an argument of kind {ascii(kind)[:40]} is not supported")
    return {kind: clean(value)}


def _is_equation(value: Any) -> bool:
    return isinstance(value, str) and _EQUATION.fullmatch(value.replace(" ", "")) is not None


def _signature(signature: Any) -> dict[str, Any]:
    return {
        "input_specs": [_input_spec(spec) for spec in signature["input_specs"]],
        "output_specs": [_output_spec(spec) for spec in signature["output_specs"]],
    }


def _input_spec(spec: Any) -> dict[str, Any]:
    ((kind, value),) = spec.items()
    if kind == "user_input":
        return {kind: {"arg": _argument(value["arg"])}}
    if kind == "constant_input":
        ((type_, constant),) = value["value"].items()
        if type_ == "as_string":
            raise ValueError("an input is a string")
        return {kind: {"name": _name(value["name"]), "value": _argument({type_: constant})}}
    if kind in ("parameter", "buffer", "tensor_constant"):
        key = f"{kind}_name"
        result = {"arg": _tensor(value["arg"]), key: _expect(is_parameter_name, value[key], "parameter name")}
        if kind == "buffer":
            result["persistent"] = _boolean(value["persistent"])
        return {kind: result}
    raise ValueError(f"an input of kind {ascii(kind)[:40]} is not supported")


def _output_spec(spec: Any) -> dict[str, Any]:
    ((kind, value),) = spec.items()
    if kind == "user_output":
        return {kind: {"arg": _argument(value["arg"])}}
    if kind == "buffer_mutation":
        name = _expect(is_parameter_name, value["buffer_name"], "parameter name")
        return {kind: {"arg": _tensor(value["arg"]), "buffer_name": name}}
    raise ValueError(f"an output of kind {ascii(kind)[:40]} is not supported")


def _call_entry(entry: Any) -> dict[str, Any]:
    signature = entry["signature"]
    names = signature.get("forward_arg_names")
    return {
        "fqn": _expect("".__eq__, entry["fqn"], "module"),
        "signature": {
            "inputs": [_argument(arg) for arg in signature["inputs"]],
            "outputs": [_argument(arg) for arg in signature["outputs"]],
            "in_spec": _tree_text(signature["in_spec"]),
            "out_spec": _tree_text(signature["out_spec"]),
            "forward_arg_names": None if names is None else [_name(name) for name in names],
        },
    }


def _tree_text(text: Any) -> str:
    protocol, tree = parse_json(_expect(lambda t: isinstance(t, str), text, "tree").encode())
    return json.dumps([_expect((1).__eq__, protocol, "tree protocol"), _tree(tree)])


def _tree(tree: Any) -> dict[str, Any]:
    type_, children = tree["type"], tree["children_spec"]
    if type_ is None and tree["context"] is None and children == []:
        return {"type": None, "context": None, "children_spec": []}
    if type_ not in _CONTAINERS:
        raise ValueError(f"inputs or outputs in a {ascii(type_)[:60]}; tensors, tuples, lists and dicts are supported")
    # The context may name an enum class, which would be imported.
    context = parse_json(tree["context"].encode()) if tree["context"] is not None else None
    if _CONTAINERS[type_]:
        context = [_name(key) for key in context or []]
    elif context is not None:
        raise ValueError("a tuple or list with a context")
    return {"type": type_, "context": json.dumps(context), "children_spec": [_tree(child) for child in children]}


def _expect(check: Callable[[Any], bool], value: Any, what: str) -> Any:
    try:
        fine = check(value) is True
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(f"{ascii(value)[:80]} is no {what} that a network has")
    return value


def _name(value: Any) -> str:
    fine = isinstance(value, str) and _NAME.fullmatch(value) and not keyword.iskeyword(value) and value not in _TAKEN
    if not fine or (value.startswith("__") and value.endswith("__")):
        # Some arguments of operators have these names. They never become names of values.
        if value in ("self", "device", "from"):
            return str(value)
        raise ValueError(f"{ascii(value)[:80]} is not a name")
    return str(value)


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) > 1 << 63:
        raise ValueError(f"{ascii(value)[:40]} is not an integer")
    return value


def _dim(value: Any) -> int:
    if not 0 <= _integer(value) <= MAX_DIM:
        raise ValueError(f"{value} is not a size")
    return int(value)


def _optional_int(value: Any) -> int | None:
    return None if value is None else _integer(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{ascii(value)[:40]} is not true or false")
    return value


def _number(value: Any) -> float | int | str:
    if value in ("Infinity", "-Infinity", "NaN"):
        return str(value)
    if type(value) not in (int, float):
        raise ValueError(f"{ascii(value)[:40]} is not a number")
    return value


def _word(value: Any) -> str:
    return str(_expect(_WORDS.__contains__, value, "option"))


def _tensor(value: Any) -> dict[str, Any]:
    return {"name": _name(value["name"])}


def _sym(value: Any, concrete: str, clean: Callable[[Any], Any]) -> dict[str, Any]:
    """A size: a number, or a checked expression with a hint."""
    ((kind, inner),) = value.items()
    if kind == concrete:
        return {kind: clean(inner)}
    _expect("as_expr".__eq__, kind, "kind of size")
    check_expression(inner["expr_str"])
    hint = inner.get("hint")
    if hint is not None:
        ((hint_kind, number),) = hint.items()
        hint = {_expect(("as_int", "as_bool", "as_float").__contains__, hint_kind, "hint"): _number_or_bool(number)}
    return {kind: {"expr_str": inner["expr_str"], "hint": hint}}


def _number_or_bool(value: Any) -> Any:
    return value if isinstance(value, bool) else _number(value)


def _sym_argument(value: Any) -> dict[str, Any]:
    ((kind, inner),) = value.items()
    return {kind: _SYM_ARGUMENTS[kind](inner)}


def _optional_tensor(value: Any) -> dict[str, Any]:
    ((kind, inner),) = value.items()
    return {"as_none": True} if kind == "as_none" else {_expect("as_tensor".__eq__, kind, "tensor"): _tensor(inner)}


def _list_of(clean: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda values: [clean(value) for value in values]


_SYM_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_name": _name, "as_int": _integer, "as_float": _number, "as_bool": _boolean,
}  # fmt: skip
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda value: True,
    "as_tensor": _tensor,
    "as_tensors": _list_of(_tensor),
    "as_int": _integer,
    "as_ints": _list_of(_integer),
    "as_float": _number,
    "as_floats": _list_of(_number),
    "as_string": _word,
    "as_strings": _list_of(_word),
    "as_sym_int": _sym_argument,
    "as_sym_ints": _list_of(_sym_argument),
    "as_sym_float": _sym_argument,
    "as_sym_floats": _list_of(_sym_argument),
    "as_sym_bool": _sym_argument,
    "as_sym_bools": _list_of(_sym_argument),
    "as_scalar_type": _integer,
    "as_memory_format": _integer,
    "as_layout": _integer,
    "as_device": lambda value: {"type": "cpu", "index": None},
    "as_bool": _boolean,
    "as_bools": _list_of(_boolean),
    "as_optional_tensors": _list_of(_optional_tensor),
    "as_optional_tensor": _optional_tensor,
}
