"""Try an installed trtkp: where it comes from, what it says it is, and that it builds and verifies a bundle.

Run by the Python that has it, outside the checkout; the tests of this folder and the wheels workflow both do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import trtkp

#: What `trtkp doctor` says of the two kinds of wheel.
KINDS = {"cuda": "the CUDA package", "pure": "the pure-Python package"}


def save_model(path: Path) -> None:
    """Two 3x3 convolutions with a ReLU between them: methods leave the first convolution of a net dense."""
    rng = np.random.default_rng(0)
    weights = {"first": rng.normal(size=(16, 8, 3, 3)), "second": rng.normal(size=(8, 16, 3, 3))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["y"], pads=[1, 1, 1, 1]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 12, 12])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def command(*arguments: str, cwd: Path) -> str:
    """Run the command line of this environment; what it printed."""
    program = Path(sys.executable).with_name("trtkp")
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"trtkp {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Fail with a message, or print a line for each thing that holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS, help="the kind of wheel that must be installed")
    kind = parser.parse_args().kind

    package = Path(trtkp.__file__).resolve()
    if Path(sys.prefix).resolve() not in package.parents:
        raise SystemExit(f"trtkp comes from {package}, not from {sys.prefix}")
    print(f"trtkp {trtkp.__version__} from {package.relative_to(Path(sys.prefix).resolve())}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checks = json.loads(command("doctor", "--json", cwd=folder))["checks"]
        (library,) = [check for check in checks if check["name"] == "plugin library"]
        if KINDS[kind] not in library["detail"]:
            raise SystemExit(f"doctor does not say that this is {KINDS[kind]}: {library['detail']}")
        print(f"doctor: {library['detail']}")

        save_model(folder / "tiny.onnx")
        command("build", "tiny.onnx", "--method", "kep", "--backend", "onnxruntime", "-o", "bundle", cwd=folder)
        command("verify", "bundle", "--require-engine", cwd=folder)
        pruned = sorted(trtkp.load(folder / "bundle").index_sets)
        if pruned != ["second"]:
            raise SystemExit(f"the bundle has index sets of {pruned}, not of the second convolution")
        print("a bundle was built, and its engine verified")


if __name__ == "__main__":
    main()
