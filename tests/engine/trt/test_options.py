"""Options of a build against the real TensorRT-RTX, whose interface is TensorRT's; what it lacks, on stand-ins."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.graphs import conv_net, image_profile
from tests.engine.trt import recording_tensorrt
from trtkp.engine import BuildRequest
from trtkp.engine.options import TrtOptions
from trtkp.engine.trt.config import set_options
from trtkp.engine.trt.log import make_logger, process_logger
from trtkp.engine.trt.plugins import check_plugin_layers, plugin_layers
from trtkp.engine.trt.tactics import TimingCacheFile, cache_name
from trtkp.engine.trt.tensorrt_rtx import TensorRTRTXBackend
from trtkp.errors import InputError, JobError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable

needs_rtx = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
no_gpu = pytest.mark.skipif(bool(find_gpus().gpus), reason="this machine has a GPU")


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    net = conv_net(tmp_path / "net.onnx")
    return BuildRequest(net, tmp_path / "out", image_profile(), targets=("sm86",))


@pytest.fixture
def rtx() -> Any:
    """TensorRT-RTX with the one logger of this process; its timing caches are deprecated, as they do nothing."""
    import tensorrt_rtx as trt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield trt


@needs_rtx
def test_every_option_reaches_the_configuration(rtx: Any, request_: BuildRequest) -> None:
    builder = rtx.Builder(process_logger(rtx))
    config = builder.create_builder_config()
    options = TrtOptions(
        workspace_mib=64, version_compatible=True, exclude_lean_runtime=True, embed_plugins=True, strip_weights=True
    )
    library = Path("/somewhere/libtrtkp.so")
    wanted = replace(request_, optimization_level=4, threads=2, trt=options, plugins=library, sparse=True)
    # the parser reports ours too, where it was loaded from: it goes in once
    used = ["/elsewhere/libtrtkp.so", "/usr/lib/libnvinfer_vc_plugin.so"]
    carried = set_options(rtx, builder, config, wanted, used)
    assert config.builder_optimization_level == 4
    assert builder.max_threads == 2
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
    for name in ("REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "SPARSE_WEIGHTS"):
        assert config.get_flag(getattr(rtx.BuilderFlag, name)), name
    assert not config.get_flag(rtx.BuilderFlag.REFIT)
    assert carried == [str(library), "/usr/lib/libnvinfer_vc_plugin.so"]
    assert sorted(config.plugins_to_serialize) == sorted(carried)  # a set inside
    plain = builder.create_builder_config()
    assert set_options(rtx, builder, plain, request_, ["/usr/lib/libnvinfer_vc_plugin.so"]) == []
    assert not any(
        plain.get_flag(flag) for flag in rtx.BuilderFlag.__members__.values() if flag != rtx.BuilderFlag.TF32
    )
    assert plain.plugins_to_serialize == []


@needs_rtx
@pytest.mark.parametrize(
    ("refit", "strip", "flags"),
    [
        (False, False, set()),
        (True, False, {"REFIT"}),
        (False, True, {"REFIT_IDENTICAL", "STRIP_PLAN"}),
        (True, True, {"REFIT", "STRIP_PLAN"}),
    ],
)
def test_stripped_engines_are_fast_unless_other_weights_may_come(
    rtx: Any, request_: BuildRequest, refit: bool, strip: bool, flags: set[str]
) -> None:
    builder = rtx.Builder(process_logger(rtx))
    config = builder.create_builder_config()
    set_options(rtx, builder, config, replace(request_, trt=TrtOptions(refit=refit, strip_weights=strip)))
    known = ("REFIT", "REFIT_IDENTICAL", "STRIP_PLAN")
    assert {name for name in known if config.get_flag(getattr(rtx.BuilderFlag, name))} == flags


def test_library_without_identical_refit_and_sparsity_builds_all_the_same(request_: BuildRequest) -> None:
    flags: list[str] = []
    old = SimpleNamespace(BuilderFlag=SimpleNamespace(__members__={"REFIT": "refit", "STRIP_PLAN": "strip"}))
    wanted = replace(request_, sparse=True, trt=TrtOptions(strip_weights=True))
    set_options(old, SimpleNamespace(), SimpleNamespace(set_flag=flags.append), wanted)
    assert sorted(flags) == ["refit", "strip"]


@needs_rtx
def test_level_and_workspace_build(request_: BuildRequest) -> None:
    changed = replace(request_, optimization_level=1, sparse=True, trt=TrtOptions(workspace_mib=64))
    built = TensorRTRTXBackend().build(changed)
    assert built.engine_bytes > 0
    assert built.plugin_layers == 0


@needs_rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(TrtOptions(version_compatible=True), "libnvinfer_lean", id="version-compatible"),
        pytest.param(TrtOptions(refit=True), "Myelin", id="refit", marks=no_gpu),
        pytest.param(TrtOptions(strip_weights=True), "Myelin", id="strip", marks=no_gpu),
    ],
)
def test_what_rtx_cannot_build_here_says_so_in_its_own_words(
    request_: BuildRequest, options: TrtOptions, words: str
) -> None:
    """These need the lean runtime's library, or a GPU: the option arrived, and so does TensorRT's error line."""
    with pytest.raises(JobError, match=rf"the builder failed: .*{words}") as caught:
        TensorRTRTXBackend().build(replace(request_, trt=options))
    assert "net.onnx" in str(caught.value)
    assert not list((request_.output).iterdir())


@needs_rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TrtOptions(hardware_compatible="ampere+"), "TensorRT-RTX ignores it; name architectures with --target"),
        (TrtOptions(embed_plugins=True), "TensorRT-RTX supports no plugins"),
    ],
)
def test_options_that_mean_nothing(request_: BuildRequest, options: TrtOptions, words: str) -> None:
    with pytest.raises(InputError) as caught:
        TensorRTRTXBackend().build(replace(request_, trt=options))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hardware_compatible": "pascal"}, "--hardware-compatible pascal: not known; use one of none, ampere+"),
        ({"workspace_mib": 0}, "--workspace 0: out of range; give 1 or more"),
        ({"exclude_lean_runtime": True}, "only a version-compatible engine carries one; add --version-compatible"),
    ],
)
def test_values_that_mean_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        TrtOptions(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TrtOptions(refit=True), "--refit: tensorrt 10.0 has no flag REFIT"),
        (TrtOptions(strip_weights=True), "--strip-weights: tensorrt 10.0 has no flag STRIP_PLAN"),
        (TrtOptions(version_compatible=True), "--version-compatible: tensorrt 10.0 has no flag VERSION_COMPATIBLE"),
        (TrtOptions(hardware_compatible="same-compute-capability"), "TensorRT 10.0 has no such level"),
        (TrtOptions(embed_plugins=True), "this TensorRT cannot embed plugins"),
    ],
)
def test_an_option_that_the_library_lacks_is_reported(options: TrtOptions, words: str, request_: BuildRequest) -> None:
    """On a stand-in of a library without flags: asking, and not versions, decides."""
    bare = SimpleNamespace(
        __name__="tensorrt",
        __version__="10.0",
        BuilderFlag=SimpleNamespace(__members__={}),
        HardwareCompatibilityLevel=SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1}),
    )
    with pytest.raises(InputError) as caught:
        set_options(bare, SimpleNamespace(), SimpleNamespace(), replace(request_, trt=options, plugins=Path("x.so")))
    assert words in str(caught.value)


def test_hardware_level_of_tensorrt(request_: BuildRequest) -> None:
    config = SimpleNamespace()
    levels = SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1, "SAME_COMPUTE_CAPABILITY": 2})
    module = SimpleNamespace(HardwareCompatibilityLevel=levels)
    set_options(module, SimpleNamespace(), config, replace(request_, trt=TrtOptions(hardware_compatible="ampere+")))
    assert config.hardware_compatibility_level == 1


def test_every_option_of_a_build_is_on_the_wire() -> None:
    """A field that is added without a test above would go unnoticed."""
    assert [field.name for field in fields(TrtOptions)] == [
        "timing_cache", "workspace_mib", "tune_batches", "version_compatible", "exclude_lean_runtime",
        "hardware_compatible", "embed_plugins", "refit", "strip_weights",
    ]  # fmt: skip


@needs_rtx
def test_timing_cache_is_kept_per_library_version_and_gpu(rtx: Any, tmp_path: Path) -> None:
    config = rtx.Builder(process_logger(rtx)).create_builder_config()
    said: list[str] = []
    cache = TimingCacheFile(rtx, config, tmp_path / "new", lambda severity, text: said.append(text))
    assert config.get_flag(rtx.BuilderFlag.EDITABLE_TIMING_CACHE)
    assert config.get_timing_cache() is not None
    assert not cache.path.exists()
    cache.save()
    assert said == []
    assert cache.path.read_bytes()[:4]
    assert {path.name for path in cache.path.parent.iterdir()} <= {cache.path.name, f"{cache.path.name}.lock"}
    assert cache.path.name == cache_name(rtx)
    assert cache_name(rtx, "NVIDIA L4-sm89") == f"tensorrt-rtx-{rtx.__version__}-nvidia-l4-sm89.tactics"
    other = SimpleNamespace(__name__="tensorrt", __version__="11.4.0")
    assert cache_name(other, "NVIDIA L4-sm89") == "tensorrt-11.4.0-nvidia-l4-sm89.tactics"


@needs_rtx
def test_timing_cache_that_cannot_be_used_costs_a_warning(rtx: Any, tmp_path: Path) -> None:
    (tmp_path / cache_name(rtx)).write_bytes(b"garbage" * 20)
    config = rtx.Builder(process_logger(rtx)).create_builder_config()
    said: list[str] = []
    cache = TimingCacheFile(rtx, config, tmp_path, lambda severity, text: said.append(text))
    assert config.get_timing_cache() is not None  # TensorRT takes an empty one
    cache.save()
    assert cache.path.read_bytes() != b"garbage" * 20
    (tmp_path / "file").write_bytes(b"")
    lost = TimingCacheFile(rtx, config, tmp_path / "file", lambda severity, text: said.append(text))
    lost.save()
    assert any("timing cache" in text and "cannot be" in text for text in said)


def test_timing_cache_that_tensorrt_refuses(tmp_path: Path) -> None:
    """On a recording configuration: one of another GPU is refused by ``set_timing_cache``, and an empty one taken."""
    taken: list[bytes] = []
    module = SimpleNamespace(__name__="tensorrt", __version__="11.4", BuilderFlag=SimpleNamespace())
    config = SimpleNamespace(
        create_timing_cache=lambda content: content,
        set_timing_cache=lambda cache, ignore_mismatch: taken.append(cache) or (cache == b"" and not ignore_mismatch),
    )
    (tmp_path / cache_name(module)).write_bytes(b"of another GPU")
    said: list[str] = []
    TimingCacheFile(module, config, tmp_path, lambda severity, text: said.append(text))
    assert taken == [b"of another GPU", b""]
    file = tmp_path / cache_name(module)
    assert said == [
        f"timing cache: {file} cannot be used and was set aside as {file.name}.bad, so every tactic is timed again"
    ]
    assert not file.exists()


def network(*kinds: tuple[str, str]) -> Any:
    layers = [recording_tensorrt.ILayer(f"layer{i}", kind, space, None) for i, (kind, space) in enumerate(kinds)]
    return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)


def test_layers_of_our_plugins_are_counted() -> None:
    """On a stand-in network: TensorRT-RTX has no plugin layers. Other plugins stand beside ours in every detector."""
    ours, theirs, old = ("PLUGIN_V3", "trtkp"), ("PLUGIN_V3", ""), ("PLUGIN_V2", "")
    mixed = network(("CONVOLUTION", ""), ours, theirs, ("SHUFFLE", ""), ours, old)
    assert plugin_layers(recording_tensorrt, mixed) == ["layer1", "layer4"]
    assert check_plugin_layers(recording_tensorrt, network(ours, theirs, old), 1, Path("net.onnx")) == 1
    with pytest.raises(
        JobError, match=r"net.onnx: the graph has 2 operators .* the network has 1 layers of its plugins"
    ):
        check_plugin_layers(recording_tensorrt, network(ours, theirs, ("SCATTER", "")), 2, Path("net.onnx"))


@needs_rtx
def test_no_layer_of_a_real_network_is_a_plugin(rtx: Any, request_: BuildRequest) -> None:
    logger = process_logger(rtx)
    definition = rtx.Builder(logger).create_network(0)
    parser = rtx.OnnxParser(definition, logger)
    assert parser.parse_from_file(str(request_.onnx))
    assert definition.num_layers > 0
    assert plugin_layers(rtx, definition) == []
    # what the count does to a plugin layer: its class is set, and its members are then those of the class
    layer = definition.get_layer(0)
    layer.__class__ = rtx.IConvolutionLayer
    assert layer.num_output_maps == 8


@pytest.fixture
def log_of() -> Callable[..., Any]:
    class Base:
        ERROR, WARNING = 1, 2

    return lambda log=None: make_logger(SimpleNamespace(ILogger=Base), log)


def test_errors_since_a_mark(log_of: Callable[..., Any]) -> None:
    told: list[tuple[str, str]] = []
    logger = log_of(lambda *line: told.append(line))
    logger.log(1, "an old error")
    mark = logger.mark()
    assert logger.since(mark) == ""
    logger.log(2, "a warning")
    logger.log(3, "chatter")
    for number in range(5):
        text = f"cause\n {number}"
        logger.log(1, text)
    assert logger.since(mark) == "cause 0; cause 1"
    assert told[:2] == [("error", "an old error"), ("warning", "a warning")]
    assert not any(text == "chatter" for _, text in told)
    for _ in range(200):  # what is long past is forgotten, not what came last
        logger.log(1, "more")
    mark = logger.mark()
    logger.log(1, "the last")
    assert logger.since(mark) == "the last"
