"""What others serve a bundle by: Triton's repository, KServe's manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import trtkp as package
from tests.cli.conftest import Trtkp, trtkp
from tests.serving.servers import images
from trtkp.errors import InputError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable
from trtkp.pipeline.options import BuildOptions

__all__ = ["trtkp"]

SCHEMA = json.loads((Path(__file__).parent / "inference_service.schema.json").read_text())


def parsed(path: Path) -> Any:
    """A config.pbtxt, strictly by Triton's schema: an unknown field is an error."""
    return text_format.Parse((path / "config.pbtxt").read_text(), pb.ModelConfig())


def test_triton_repository(trtkp: Trtkp, bundles: Path, tmp_path: Path) -> None:
    out = tmp_path / "my models"
    done = trtkp(
        "export-triton", bundles / "kep", bundles / "net", "-o", out, "--max-delay", "2.5", "--instances", "3",
        "--queue", "64", "--timeout", "4", "--threads", "2", "--json",
    )  # fmt: skip
    assert (done.status, done.err) == (0, "")
    assert done.document["models"] == {"kep": ["1"], "net": ["1", "2"]}
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {
        "kep/1/model.onnx", "kep/config.pbtxt", "net/1/model.onnx", "net/2/model.onnx", "net/config.pbtxt",
        "run-tritonserver.sh",
    }  # fmt: skip
    config = parsed(out / "kep")
    assert (config.name, config.platform, config.max_batch_size) == ("kep", "onnxruntime_onnx", 64)
    assert [(t.name, pb.DataType.Name(t.data_type), list(t.dims)) for t in (*config.input, *config.output)] == [
        ("image", "TYPE_FP32", [3, 8, 8]), ("y", "TYPE_FP32", [5]),
    ]  # fmt: skip
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([8, 64], 2500)
    assert batching.default_queue_policy.max_queue_size == 64
    assert batching.default_queue_policy.default_timeout_microseconds == 4_000_000
    [group] = config.instance_group
    assert (group.count, group.kind) == (3, pb.ModelInstanceGroup.KIND_CPU)
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    [warm_up] = config.model_warmup
    assert (warm_up.batch_size, list(warm_up.inputs["image"].dims)) == (64, [3, 8, 8])
    assert parsed(out / "net").version_policy.HasField("all")


def test_exported_model_gives_the_bundle_s_answers(trtkp: Trtkp, bundles: Path, tmp_path: Path) -> None:
    """What Triton would load, in ONNX Runtime, in the shapes that the configuration says."""
    assert trtkp("export-triton", bundles / "kep", "-o", tmp_path / "out").status == 0
    config = parsed(tmp_path / "out" / "kep")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "kep" / "1" / "model.onnx")
    feeds = {tensor.name: images(3).reshape(3, *tensor.dims) for tensor in config.input}
    [got] = session.run([tensor.name for tensor in config.output], feeds)
    with package.load(bundles / "kep") as bundle:
        np.testing.assert_allclose(got, bundle.run({"image": images(3)})["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "batch"), [("one", 1), ("four", 4)])
def test_fixed_batch_is_part_of_the_shape(trtkp: Trtkp, bundles: Path, tmp_path: Path, name: str, batch: int) -> None:
    assert trtkp("export-triton", bundles / name, "-o", tmp_path / "out").status == 0
    config = parsed(tmp_path / "out" / name)
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [batch, 3, 8, 8])
    assert not config.HasField("dynamic_batching")


def test_command_line(trtkp: Trtkp, bundles: Path, tmp_path: Path) -> None:
    out = tmp_path / "my models"
    done = trtkp("export-triton", bundles / "kep", "-o", out)
    headline, command = done.out.splitlines()
    assert headline.endswith("models and versions: kep (1)")
    script = out / "run-tritonserver.sh"
    assert f"exec {command.strip()} " in script.read_text()
    fake = tmp_path / "tritonserver"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {"PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]])}  # a real one must not come first
    said = subprocess.run([script, "--http-port=9"], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [
        f"--model-repository={out}", "--exit-on-error=true", "--strict-readiness=true", "--http-port=9",
    ]  # fmt: skip


def tensorrt_bundle(
    source: Path, target: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, embedded: bool
) -> Path:
    """A TensorRT bundle with plugins and two profiles, made of another bundle; its plan is no real one.

    The plugin library that it was built with is in ``folder/lib``, and is the installed one.
    """
    from trtkp.bundle import BundleWriter
    from trtkp.bundle.manifest import TensorRTRecord

    installed = folder / "lib"
    installed.mkdir()
    (installed / "libtrtkp.so").write_bytes(b"library")
    (installed / "libtrtkp_register.so").write_bytes(b"registers")
    monkeypatch.setenv("TRTKP_LIBRARY", str(installed / "libtrtkp.so"))
    digest = sha256(b"library").hexdigest()
    record = TensorRTRecord(plugin_layers=2, plugin_library=digest, embed_plugins=embedded, tune_batches=[1])
    bundle = package.load(source)
    with BundleWriter(target) as writer:
        for name in ("engine.onnx", "model.onnx"):
            (writer.staging / name).write_bytes((bundle.path / name).read_bytes())
        (writer.staging / "model.engine").write_bytes(b"plan")
        changes = {"backend": "tensorrt", "tensorrt": record}
        writer.publish(lambda files: bundle.manifest.model_copy(update={**changes, "files": files}))
    return target


@pytest.mark.parametrize("embedded", [False, True])
def test_plugin_library_comes_along(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    """A TensorRT bundle with plugins: the plan, the two libraries, and the line that loads the registering one."""
    from trtkp.serving.export.triton import export_triton

    tensorrt_bundle(bundles / "kep", tmp_path / "kep", tmp_path, monkeypatch, embedded=embedded)
    made = export_triton([tmp_path / "kep"], tmp_path / "out")
    assert (tmp_path / "out/kep/1/model.plan").read_bytes() == b"plan"
    config = parsed(tmp_path / "out" / "kep")
    assert (config.platform, config.instance_group[0].kind) == ("tensorrt_plan", pb.ModelInstanceGroup.KIND_GPU)
    assert list(config.instance_group[0].profile) == ["0", "1"]  # of batch 1, and of the largest
    if embedded:
        assert not (tmp_path / "out/kep/libtrtkp.so").exists()
        assert made.command.endswith("--backend-config=tensorrt,version-compatible=true")
        return
    assert (tmp_path / "out/kep/libtrtkp.so").read_bytes() == b"library"
    assert (tmp_path / "out/kep/libtrtkp_register.so").read_bytes() == b"registers"
    assert made.command.endswith(f"--backend-config=tensorrt,plugins={tmp_path}/out/kep/libtrtkp_register.so")
    (tmp_path / "lib" / "libtrtkp.so").write_bytes(b"another build")
    with pytest.raises(InputError, match="another build of the plugin library"):
        export_triton([tmp_path / "kep"], tmp_path / "again")


@pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
def test_rtx_engines_go_as_onnx(trtkp: Trtkp, bundles: Path, tmp_path: Path) -> None:
    options = BuildOptions(backend="tensorrt-rtx", targets=("sm86",))
    package.build(bundles / "net.onnx", tmp_path / "rtx", method="none", options=options)
    done = trtkp("export-triton", tmp_path / "rtx", "-o", tmp_path / "out")
    assert done.err == ("note: rtx: Triton has no TensorRT-RTX backend: its engine.onnx is served by ONNX Runtime\n")
    assert (tmp_path / "out/rtx/1/model.onnx").is_file()
    if not find_gpus().gpus:  # with one it would serve
        assert trtkp("serve", tmp_path / "rtx", "--port", "0", "--grpc-port", "0").status == 1


def test_triton_refusals(trtkp: Trtkp, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "full: exists and is not empty" in trtkp("export-triton", bundles / "kep", "-o", tmp_path / "full").message
    assert "no such bundle" in trtkp("export-triton", tmp_path / "no", "-o", tmp_path / "out").message
    mixed = tmp_path / "net"
    mixed.mkdir()
    for number, name in (("1", "kep"), ("2", "four")):
        (mixed / number).symlink_to(bundles / name)
    assert "versions of net differ" in trtkp("export-triton", mixed, "-o", tmp_path / "out").message
    assert {path.name for path in tmp_path.iterdir()} == {"full", "net"}


def test_a_model_s_name_never_leads_out_of_the_repository(
    trtkp: Trtkp, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle := tmp_path / "kep").symlink_to(bundles / "kep")
    (inside := tmp_path / "inside").mkdir()
    monkeypatch.chdir(inside)
    (inside / "kep").symlink_to(bundle)
    assert trtkp("export-triton", "../inside/kep/../kep/.", "-o", tmp_path / "out").status == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"kep", "run-tritonserver.sh"}
    shutil.copytree(bundles / "kep", tmp_path / "real" / "deep", symlinks=False)
    (tmp_path / "real" / "deep" / "x").mkdir()
    monkeypatch.chdir(tmp_path / "real" / "deep" / "x")
    assert trtkp("export-triton", "..", "-o", tmp_path / "second").status == 0
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"deep", "run-tritonserver.sh"}
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "kep", "out", "real", "second"}


@pytest.mark.parametrize("options", [(), ("--image", "registry.example/trtkp:1", "--gpus", "2", "--memory", "500Mi")])
def test_kserve_manifest(trtkp: Trtkp, tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = ("export-kserve", "kep", "--storage", "s3://models/kep", *options)
    text = trtkp(*arguments).out
    manifest = yaml.safe_load(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    assert trtkp(*arguments, "--json").document == manifest
    done = trtkp(*arguments, "-o", tmp_path / "kep.yaml")
    assert done.out == f"{tmp_path}/kep.yaml  kubectl apply -f {tmp_path}/kep.yaml\n"
    assert (tmp_path / "kep.yaml").read_text() == text
    predictor = manifest["spec"]["predictor"]
    if not options:
        assert predictor["model"]["storageUri"] == "s3://models/kep"
        return
    [container] = predictor["containers"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "500Mi", "nvidia.com/gpu": "2"}
    assert {"name": "STORAGE_URI", "value": "s3://models/kep"} in container["env"]


def test_schema_refuses_what_kubernetes_would(trtkp: Trtkp) -> None:
    manifest = trtkp("export-kserve", "kep", "--storage", "s3://models/kep", "--image", "i", "--json").document
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for change in (
        lambda predictor: predictor.update(replicas=1),
        lambda predictor: predictor.update(minReplicas="1"),
        lambda predictor: predictor["containers"][0].update(argv=[]),
        lambda predictor: predictor["containers"][0]["ports"][0].pop("containerPort"),
        lambda predictor: predictor["containers"][0]["resources"]["limits"].update(cpu="two"),
    ):
        broken = json.loads(json.dumps(manifest))
        change(broken["spec"]["predictor"])
        assert not validator.is_valid(broken)


def test_container_s_command_serves_the_bundle_under_its_name(trtkp: Trtkp, bundles: Path, tmp_path: Path) -> None:
    """The link that the container makes is what gives the model its name."""
    from trtkp.serving.models.repository import find_bundles

    (tmp_path / "mounted").symlink_to(bundles / "one")
    (tmp_path / "named").symlink_to(tmp_path / "mounted")
    [(name, version, _)] = find_bundles([tmp_path / "named"])
    assert (name, version) == ("named", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Kep", "--storage", "s3://x"), "Kubernetes allows up to 54 lower-case letters"),
        (("kep", "--storage", "models/kep"), "not a URI"),
        (("kep", "--storage", "s3://x", "--min-replicas", "5"), "not a range"),
        (("kep", "--storage", "s3://x", "--cpu", "two"), "--cpu two: not a Kubernetes quantity"),
        (("kep", "--storage", "s3://x", "--gpus", "-1"), "--gpus -1: out of range; give 0 or more"),
    ],
)
def test_kserve_refusals(trtkp: Trtkp, arguments: tuple[str, ...], words: str) -> None:
    done = trtkp("export-kserve", *arguments)
    assert done.status == 2
    assert words in done.message
