"""The exported repository in a real ``tritonserver``.

NVIDIA publishes the server inside the wheel ``nvidia-pytriton``, with the Python backend alone. So two things are
checked. Unchanged, the repository passes the server's own validation, and each model is refused only for its missing
backend. With the backend replaced by a Python model that runs the exported ``model.onnx``, everything else in the
configuration takes effect: shapes, versions, batching, instances, warm-up.

To run them: ``pip download --no-deps nvidia-pytriton``, unzip the wheel, and name the folder in ``TRTKP_PYTRITON``.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import text_format
from tritonclient.utils import InferenceServerException

import trtkp
from tests.serving.servers import batch_input, images
from tests.serving.test_export import parsed, tensorrt_bundle
from trtkp.serving.export.triton import export_triton
from trtkp.serving.options import ServeOptions

WHEEL = Path(os.environ.get("TRTKP_PYTRITON", ""))
NAMES = ("kep", "one", "four", "wide", "net")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("TRTKP_PYTRITON"), reason="TRTKP_PYTRITON does not name an unzipped wheel of nvidia-pytriton"
    ),
]

#: Runs an exported ONNX file in the Python backend. Tensors go by DLPack: the wheel's stub misreads NumPy 2's arrays.
MODEL = """
import json
from pathlib import Path

import triton_python_backend_utils as triton
import numpy as np
import onnxruntime


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs, self.outputs = ([entry["name"] for entry in config[key]] for key in ("input", "output"))
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {name: np.from_dlpack(triton.get_input_tensor_by_name(request, name)) for name in self.inputs}
        values = self.session.run(self.outputs, feeds)
        return triton.InferenceResponse([triton.Tensor.from_dlpack(*pair) for pair in zip(self.outputs, values)])
"""


def start(repository: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Run the repository's own script, with the wheel's server first on PATH."""
    binaries = WHEEL / "pytriton" / "tritonserver" / "bin"
    (binaries / "tritonserver").chmod(0o755)  # as unzip leaves it, it may not be run
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{WHEEL / 'nvidia_pytriton.libs'}{os.pathsep}{sysconfig.get_config_var('LIBDIR')}",
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            [repository / "run-tritonserver.sh", "--allow-metrics=false", *arguments],
            stdout=file, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip


def refusals(repository: Path, folder: Path) -> dict[str, str]:
    """What the server says against each model, in a run that ends because no model can be loaded."""
    log = folder / "refusals.log"
    backends = WHEEL / "pytriton" / "tritonserver" / "backends"
    process = start(
        repository, log, f"--backend-directory={backends}", "--allow-http=false", "--allow-grpc=false"
    )  # fmt: skip
    try:
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    loading = re.findall(r"failed to load '(\S+)' version \d+: (.*?)\"?$", said, re.MULTILINE)
    polling = re.findall(r"Poll failed for model directory '(\S+)': (.*?)\"?$", said, re.MULTILINE)
    return {name: f"configuration: {text}" for name, text in polling} | dict(loading)


def lacks(backend: str) -> str:
    return (
        f"Invalid argument: unable to find backend library for backend '{backend}', "
        "try specifying runtime on the model configuration."
    )


def test_configurations_pass_the_server_s_validation(bundles: Path, tmp_path: Path) -> None:
    options = ServeOptions(max_delay_ms=2.5, instances=2, queue=64, timeout_s=4, threads=2)
    export_triton([bundles / name for name in NAMES], tmp_path / "my models", options)
    assert refusals(tmp_path / "my models", tmp_path) == dict.fromkeys(NAMES, lacks("onnxruntime"))
    file = tmp_path / "my models" / "kep" / "config.pbtxt"  # the control: it does refuse a wrong one
    file.write_text(file.read_text().replace("preferred_batch_size: 64", "preferred_batch_size: 65"))
    assert refusals(tmp_path / "my models", tmp_path)["kep"] == (
        "configuration: dynamic batching preferred size must be <= max batch size for kep"
    )


def test_configuration_of_an_engine_passes_too(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several profiles, and with the plugin library beside the version directories."""
    bundle = tensorrt_bundle(bundles / "kep", tmp_path / "kep", tmp_path, monkeypatch, embedded=False)
    export_triton([bundle], tmp_path / "out")
    assert refusals(tmp_path / "out", tmp_path) == {"kep": lacks("tensorrt")}


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """The server with the Python backend for every model; yields its HTTP and gRPC addresses."""
    for file in repository.glob("*/config.pbtxt"):
        config = parsed(file.parent)
        config.platform, config.backend = "", "python"
        file.write_text(text_format.MessageToString(config))
        for version in file.parent.glob("[0-9]*"):
            (version / "model.py").write_text(MODEL)
    backend = folder / "backends" / "python"
    shutil.copytree(WHEEL / "pytriton" / "tritonserver" / "backends" / "python", backend)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = WHEEL / "pytriton" / "tritonserver" / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"the wheel has no Python backend for Python {python}")
    shutil.copy(stub, backend)
    (backend / stub.name).chmod(0o755)
    utilities = backend / "triton_python_backend_utils.py"  # the stub ignores PYTHONPATH, and imports this first
    packages = [path for path in sys.path if path.endswith("site-packages")]
    utilities.write_text(f"import sys\nsys.path[:0] = {packages!r}\n{utilities.read_text()}")
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        http, grpc = first.getsockname()[1], second.getsockname()[1]
    log = folder / "server.log"
    process = start(
        repository, log, f"--backend-directory={backend.parent}", "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
    )  # fmt: skip
    try:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{http}")
        end = time.monotonic() + 120
        while not is_ready(client):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        client.close()
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)  # the server's own limit is 30 s
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_ready(client: triton_http.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready())
    except (OSError, InferenceServerException):
        return False


def test_server_gives_the_bundles_answers(bundles: Path, tmp_path: Path) -> None:
    """Every batch rule and both versions, after the warm-up, by HTTP and gRPC, one by one and at once."""
    repository = tmp_path / "out"
    options = ServeOptions(max_delay_ms=2.5, queue=64, timeout_s=20)
    export_triton([bundles / name for name in NAMES], repository, options)
    with serving(repository, tmp_path) as (http, grpc):
        by_http, by_grpc = triton_http.InferenceServerClient(http), triton_grpc.InferenceServerClient(grpc)
        for name, rows in (("kep", 3), ("one", 1), ("four", 4), ("wide", 2), ("net", 3)):
            versions = ("1", "2") if name == "net" else ("1",)
            for version in versions:
                with trtkp.load(bundles / name / version if name == "net" else bundles / name) as bundle:
                    want = bundle.run({"image": images(rows)})["y"]
                for module, client in ((triton_http, by_http), (triton_grpc, by_grpc)):
                    got = client.infer(name, batch_input(module, images(rows)), version).as_numpy("y")
                    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        used = by_grpc.get_model_config("kep").config
        exported = parsed(repository / "kep")
        assert used.dynamic_batching == exported.dynamic_batching
        assert used.max_batch_size == exported.max_batch_size == 64
        with pytest.raises(InferenceServerException, match="batch-size must be <= 64"):
            by_grpc.infer("kep", batch_input(triton_grpc, images(65)))
        before = by_grpc.get_inference_statistics("kep").model_stats[0]
        many = images(32)
        with ThreadPoolExecutor(32) as pool:
            answers = pool.map(
                lambda row: by_grpc.infer("kep", batch_input(triton_grpc, row[None])).as_numpy("y"), many
            )
            got = np.concatenate(list(answers))
        with trtkp.load(bundles / "kep") as bundle:
            np.testing.assert_allclose(got, bundle.run({"image": many})["y"], rtol=1e-4, atol=1e-5)
        after = by_grpc.get_inference_statistics("kep").model_stats[0]
        assert after.inference_count - before.inference_count == 32
        by_http.close()
        by_grpc.close()
