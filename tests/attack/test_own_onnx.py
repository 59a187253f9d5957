"""Our own ONNX files as sources: they build like any other file, and their notes are not believed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import trtkp
from trtkp.errors import TrtkpError
from trtkp.graph.edit import WEIGHT
from trtkp.graph.ops import DOMAIN
from trtkp.pipeline.options import BuildOptions

CPU = BuildOptions(backend="onnxruntime")


def outputs(bundle: trtkp.Bundle) -> np.ndarray:
    """What a bundle computes on four fixed images."""
    images = np.random.default_rng(1).standard_normal((4, 3, 8, 8), np.float32)
    with bundle:
        return next(iter(bundle.run({"image": images}).values())).astype(np.float64)


@pytest.mark.parametrize("file", ["model.onnx", "engine.onnx"])
@pytest.mark.parametrize("source", ["dense", "taps", "gather", "int8"])
def test_file_of_a_bundle_computes_what_the_bundle_computes(folder: Path, source: str, file: str) -> None:
    want = outputs(trtkp.load(source))
    again = trtkp.build(Path(source) / file, "again", method="none", options=CPU)
    # the model of an int8 bundle is in floating point: it differs by the rounding to 8 bits
    tolerance = 0.02 if (source, file) == ("int8", "model.onnx") else 1e-5
    assert np.linalg.norm(outputs(again) - want) <= tolerance * np.linalg.norm(want)
    assert trtkp.verify(again).ok


@pytest.mark.parametrize("lowering", ["auto", "taps", "gather"])
@pytest.mark.parametrize("source", ["dense", "taps", "gather", "int8"])
def test_engine_graph_is_pruned_again(folder: Path, source: str, lowering: str) -> None:
    options = BuildOptions(backend="onnxruntime", lowering=lowering)
    for settings in ({"method": "kep", "share": "per-layer"}, {"method": "vskp", "ratio": 0.25, "filter_group": 8}):
        try:
            bundle = trtkp.build(Path(source) / "engine.onnx", "again", options=options, **settings)
        except trtkp.InputError as error:
            assert "--lowering" in str(error)  # noqa: PT017 - it may not fit a layer, which is said
        else:
            assert trtkp.verify(bundle).ok


def test_names_that_lowerings_give_are_taken(folder: Path) -> None:
    """A node of the source has the name that the lowering of a layer gives to its first one."""
    model = onnx.load("net.onnx")
    next(node for node in model.graph.node if node.op_type == "GlobalAveragePool").name = "r1/Conv_0"
    onnx.save(model, "named.onnx")
    options = BuildOptions(backend="onnxruntime", lowering="taps")
    bundle = trtkp.build("named.onnx", "again", method="kep", share="per-layer", options=options)
    assert trtkp.verify(bundle).ok


def test_operator_without_a_body_is_refused(folder: Path) -> None:
    for model in (onnx.load("taps/model.onnx"), onnx.load("gather/model.onnx")):
        assert any(node.domain == DOMAIN for node in model.graph.node)
        del model.functions[:]
        onnx.save(model, "bare.onnx")
        with pytest.raises(trtkp.InputError, match=rf"of domain {DOMAIN} comes without its body; build from"):
            trtkp.build("bare.onnx", "again", method="none", options=CPU)
        assert not Path("again").exists()


def strings_of(model: onnx.ModelProto) -> list[str]:
    """Names that occur in a model, and some that do not."""
    names = [node.name for node in model.graph.node] + [tensor.name for tensor in model.graph.initializer]
    return [*names, "", "../../etc/passwd", "x" * 10_000, "\N{SNOWMAN}", "w0\n", "nobody.weight"]


def test_metadata_is_not_believed(folder: Path) -> None:
    """Any file with any notes of ours builds to the same as without them."""
    want = outputs(trtkp.load("dense"))
    chance = random.Random(0)
    for source in ("net.onnx", "dense/engine.onnx"):
        model = onnx.load(source)
        names = strings_of(model)
        owners = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input]
        for owner in owners:
            owner.doc_string = chance.choice(names)
            for key in (WEIGHT, "trtkp.fold", "trtkp.plan", chance.choice(names)):
                owner.metadata_props.append(onnx.StringStringEntryProto(key=key, value=chance.choice(names)))
        onnx.save(model, "noted.onnx")
        bundle = trtkp.build("noted.onnx", "again", method="kep", share="per-layer", options=CPU)
        assert {layer.name for layer in bundle.manifest.layers} == {"w0", "w1", "w2"}
        assert trtkp.verify(bundle).ok
        assert np.allclose(outputs(trtkp.build("noted.onnx", "again", method="none", options=CPU)), want, rtol=1e-5)


def test_damaged_attributes_and_domains_give_one_line(folder: Path) -> None:
    """Random changes of what nodes say of themselves: a build that verifies, or a line that is no internal error."""
    chance, built, lines = random.Random(0), 0, []
    for turn in range(40):
        model = onnx.load(
            chance.choice(["taps/model.onnx", "taps/engine.onnx", "int8/engine.onnx", "gather/model.onnx"])
        )
        inner = [node for function in model.functions for node in function.node]
        for _ in range(chance.randint(1, 3)):
            node = chance.choice([*model.graph.node, *inner])
            match chance.randrange(4):
                case 0:
                    node.domain = chance.choice(["", DOMAIN, "com.microsoft", "ai.onnx.ml", "x" * 300])
                case 1 if node.attribute:
                    del node.attribute[chance.randrange(len(node.attribute))]
                case 2:
                    node.attribute.append(helper.make_attribute("group", chance.choice([0, -1, 3, 2**62])))
                case _:
                    for attribute in node.attribute:
                        if attribute.ints:
                            attribute.ints[0] = chance.choice([-1, 0, 7, 2**62])
        onnx.save(model, f"damaged-{turn}.onnx")
        try:
            bundle = trtkp.build(f"damaged-{turn}.onnx", "again", method="kep", options=CPU)
        except TrtkpError as error:
            lines.append(str(error))
        else:
            built += 1
            assert trtkp.verify(bundle).ok
    assert lines
    assert not [line for line in lines if "\n" in line or len(line) > 1000]
    assert built + len(lines) == 40
