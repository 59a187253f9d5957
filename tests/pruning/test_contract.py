"""`Method` and `Backend` are all that the project asks of methods and backends: nothing probes for more."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from trtkp.engine import BACKENDS, base, get_backend
from trtkp.errors import InputError
from trtkp.index.index_set import from_mask
from trtkp.pruning import method as contract
from trtkp.pruning.method import Method
from trtkp.pruning.methods.allocation import Allocated, Allocation, LayerSettings
from trtkp.pruning.methods.fixed import Stored
from trtkp.pruning.methods.registry import METHODS, made_before, make_method
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.methods.vskp_lists import Listed

ROOT = Path(__file__).parents[2]
#: Where a method, or a backend, is at home and may know itself by name.
_HOMES = {"method": ROOT / "prune" / "methods", "backend": ROOT / "trtkp" / "engine"}
#: The base class is left out: `trtkp.prune` takes a method or its name, and has to tell them apart.
_CLASSES = {kind.__name__ for kind in (Stored, Listed, Allocated, *METHODS.values())}
#: Names of methods that are also words of other lists: they count only beside something called a method.
_WORDS = {"l1", "none"}
#: ``engine.onnx`` is a graph of every bundle; the other artefacts tell a backend.
_BACKENDS = {*BACKENDS, *(get_backend(name).artefact for name in BACKENDS if get_backend(name).compiles)}
_BACKEND_CLASSES = {kind.__name__ for name in BACKENDS for kind in type(get_backend(name)).__mro__}
_BACKEND_CLASSES |= {"TrtEngineRunner", "OrtRunner"}
#: Everything that a method may say of itself.
_FEATURES = {name for kind in (Method, Stored, Listed, Allocated, *METHODS.values()) for name in dir(kind)} | {
    each.name for kind in (Stored, Listed, Allocated, *METHODS.values()) for each in fields(kind)
}
_FEATURES = {name for name in _FEATURES if not name.startswith("_")}


def probes(tree: ast.AST, *, method: bool = True, backend: bool = True) -> Iterator[tuple[int, str]]:
    """Lines of a module that probe for a feature or class of methods, or compare a name of a method or backend."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if method and node.func.id in ("getattr", "hasattr") and _constant(node.args[1]) in _FEATURES:
                yield node.lineno, ast.unparse(node)
            if node.func.id in ("isinstance", "issubclass"):
                classes = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                known = (_CLASSES if method else set()) | (_BACKEND_CLASSES if backend else set()) - {"object", "ABC"}
                if classes & known:
                    yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = {word for side in sides for part in ast.walk(side) if (word := _constant(part)) is not None}
            of_method = any("method" in ast.unparse(side) for side in sides)
            names = METHODS.keys() - (set() if of_method else _WORDS)
            if (backend and words & _BACKENDS) or (method and words & names):
                yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.MatchValue) and _constant(node.value) in (_BACKENDS if backend else set()):
            yield node.lineno, ast.unparse(node)


def imports_of(file: Path, package: str) -> Iterator[int]:
    """Lines that import a package or a module of it; also inside of functions and for types only."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [f"{node.module}.{each.name}" for each in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if any(f"{name}.".startswith(f"{package}.") for name in names):
            yield node.lineno  # type: ignore[attr-defined]  # a statement


def _constant(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _sources() -> list[Path]:
    # `trtkp/pruning` and `trtkp/calib` are links to these folders
    return [file for room in ("trtkp", "prune", "calib") for file in sorted((ROOT / room).rglob("*.py"))]


def test_nothing_probes_for_a_method_or_a_backend_outside_of_its_home() -> None:
    found = []
    for file in _sources():
        if "/pruning/" in str(file.relative_to(ROOT)) or str(file.relative_to(ROOT)).startswith("trtkp/calib/"):
            continue
        asked = {what: not file.is_relative_to(home) for what, home in _HOMES.items()}
        found += [
            f"{file.relative_to(ROOT)}:{line}: {text}" for line, text in probes(ast.parse(file.read_text()), **asked)
        ]
    assert found == []


def test_only_engine_imports_what_the_tensorrt_flavours_share() -> None:
    """Everything else opens, runs and times engines through `Backend` and `Runner`, and needs no cast to do so."""
    home = _HOMES["backend"]
    files = [file for file in _sources() if not file.is_relative_to(home)]
    assert [f"{file.relative_to(ROOT)}:{line}" for file in files for line in imports_of(file, "trtkp.engine.trt")] == []
    # above `trt`, only the table of the backends in `trtkp.engine` names its modules, as text
    assert [file.name for file in home.glob("*.py") if list(imports_of(file, "trtkp.engine.trt"))] == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("import trtkp.engine.trt.runner", [1]),
        ("from trtkp.engine import trt", [1]),
        ("def f():\n    from trtkp.engine.trt.runner import TrtEngineRunner", [2]),
        ("from trtkp.engine.base import trt", []),
        ("from trtkp.engine import base", []),
    ],
)
def test_an_import_is_found(tmp_path: Path, text: str, lines: list[int]) -> None:
    (tmp_path / "module.py").write_text(text, encoding="utf-8")
    assert list(imports_of(tmp_path / "module.py", "trtkp.engine.trt")) == lines


@pytest.mark.parametrize(
    "text",
    [
        'getattr(method, "nm", None)',
        'hasattr(chosen, "fully_connected")',
        "isinstance(method, Dense | Stored)",
        "isinstance(method, (PPTKP, int))",
        'self.method.name != "from-zeros"',
        'method in ("vskp", "l1")',
        'name == "pptkp"',
        'record.origin != "from-zeros"',
        'kind in ("kep", "dense")',
        'backend.name == "tensorrt"',
        'form == "onnxruntime"',
        'backend.artefact != "model.engine"',
        'name not in ("tensorrt", "tensorrt-rtx")',
        "isinstance(runner, TrtEngineRunner)",
    ],
)
def test_a_probe_is_found(text: str) -> None:
    assert [line for line, _ in probes(ast.parse(f"x = 1\nif {text}:\n    pass\n"))] == [2]


@pytest.mark.parametrize(
    "text",
    ['getattr(torch, "float16")', "isinstance(x, Path)", 'choice == "dense"', 'method == "entropy"', 'norm == "l1"'],
)
def test_what_is_no_probe_is_left_alone(text: str) -> None:
    assert list(probes(ast.parse(text))) == []


def overrides(method: Method, hook: str) -> bool:
    return getattr(type(method), hook) is not getattr(Method, hook)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(name: str) -> None:
    method = make_method(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert method.settings().keys() == set(method.setting_names())
    # a hook and what announces it come together
    assert overrides(method, "regulariser") == method.regularises
    assert overrides(method, "convert") == overrides(method, "deployed") == method.converts
    assert overrides(method, "repair") == overrides(method, "repairs")
    assert method.prepares == (method.converts and method.regularises)
    assert (method.nm is not None) >= method.expects_two_four
    if method.converts:  # their masks follow from training, or are none
        with pytest.raises(InputError, match=f"--method {name}"):
            method.check_one_shot()
    else:
        method.check_one_shot()


@pytest.mark.parametrize("name", METHODS)
def test_index_sets_that_were_made_before_are_told_of_as_the_method_tells(name: str) -> None:
    """A bundle of a pruned directory has the same counting, notes and advice as one that was pruned in the build."""

    class Counts:
        def product_weights(self) -> int:
            return 100

        def statistics(self) -> int:
            return 10

        def batch_norm_elements(self) -> int:
            return 20

        def elementwise_operations(self) -> int:
            return 30

    method = make_method(name)
    origin = made_before(name, method.settings())
    assert origin is not None
    assert type(origin) is type(method)
    assert origin.settings() == method.settings()
    stored = Stored(name, method.settings(), {}, {}, {}, origin=origin)
    assert stored.paper_counting(70, Counts()) == method.paper_counting(70, Counts())
    assert stored.coarser() == method.coarser()
    for folded in (False, True):
        assert stored.notes(pruned=True, folded=folded) == method.notes(pruned=True, folded=folded)
    assert stored.notes(pruned=False, folded=True) == []


def test_settings_of_layers_or_of_a_file_are_left_out_of_what_was_made_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> bytes:
        raise AssertionError(f"a manifest made trtkp read {path}")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert made_before("vskp", {"alpha": 0.5, "allocation": "/dev/zero"}) == VSKP(alpha=0.5)
    assert made_before("vskp", {"alpha": 0.5, "allocation": {"a": {"ratio": 0.5}}}) == VSKP(alpha=0.5)
    assert made_before("vskp", {"index": "lists.safetensors", "sha256": "0"}) == VSKP()
    assert made_before("one of the user's own", {}) is None


def test_settings_by_layers_answer_as_their_method() -> None:
    for shared in (SOKS(groups=2, retrain=True, nm="2:4"), SOKS(shapes="ASK_2"), VSKP(nm="2:4")):
        given = {key: value for key, value in shared.settings().items() if value != getattr(type(shared), key)}
        if shared.name == "soks" and "shapes" in given:
            del given["groups"]
        method = Allocated(Allocation(shared.name, {"a": LayerSettings(0.5)}, given), make_method)
        for said in ("nm", "expects_two_four", "retrain", "regularises", "prepares"):
            assert getattr(method, said) == getattr(shared, said), said
    for setting in ("fully_connected", "reactivate"):
        flag = setting.replace("_", "-")
        with pytest.raises(InputError, match=f"^--{flag} does not work with an allocation file; leave it out"):
            Allocated(Allocation("vskp", {}, {setting: True}), make_method)


def test_a_method_that_overrides_nothing_has_the_defaults() -> None:
    class Everything(Method):
        name = "everything"

        def inapplicable(self, layer: object) -> str | None:
            return None

        def masks(self, layers: object, weights: object) -> contract.Masks:
            return {}

    method = Everything()
    assert method.settings() == {}
    assert not any((method.regularises, method.converts, method.repairs, method.retrain))
    assert method.notes(pruned=False, folded=True) == ["method everything pruned no layer: the engine is dense"]
    with pytest.raises(InputError, match="method everything has no stage prepare; leave it out of the recipe"):
        method.check_training(prepare=1, regularise=0, finetune=1)
    assert method.paper_bytes_by_layer({"a": from_mask(np.ones((2, 2, 1, 1), bool), 1)}) == {}
    for hook in ("regulariser", "deployed"):
        with pytest.raises(NotImplementedError, match="method everything"):
            getattr(method, hook)(*[None] * (2 if hook == "regulariser" else 3))
    with pytest.raises(TypeError, match="abstract"):
        Method()  # type: ignore[abstract]


def test_what_backends_can_do() -> None:
    found = {
        name: (b.compiles, b.runs_on_cpu, b.takes_plugins, b.takes_targets, b.qdq_variant, b.default_fallback)
        for name, b in ((name, get_backend(name)) for name in BACKENDS)
    }
    wanted = {
        "tensorrt": (True, False, True, False, "explicit", "fp16"),
        "tensorrt-rtx": (True, False, False, True, "explicit", "fp16"),
        "onnxruntime": (False, True, False, False, "onnxruntime", "fp32"),
        "onnxruntime-rtx": (False, False, False, False, "explicit", "fp16"),
    }
    assert {name: found[name] for name in wanted} == wanted
    onnxruntime, rtx = get_backend("onnxruntime"), get_backend("tensorrt-rtx")
    with pytest.raises(InputError, match="onnxruntime does not compute in FP8"):
        onnxruntime.check_quantisable("fp8")
    with pytest.raises(InputError, match="--target sm86 does not compute in FP8; choose from sm89, sm120, sm121"):
        rtx.check_quantisable("fp8", ["sm89", "sm86"])
    rtx.check_quantisable("int8", ["sm86"])
    assert onnxruntime.engine_targets("int8", ()) == ()
    assert rtx.engine_targets("fp8", ["SM89"]) == ("SM89",)


@pytest.mark.parametrize("module", [contract, base])
def test_examples_of_the_docstrings_run(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]  # a module
    assert result.attempted > 0
    assert result.failed == 0
