"""A build's configuration, for TensorRT and TensorRT-RTX alike: types, targets, profile, options."""

from __future__ import annotations

from typing import Any

from trtkp.engine.base import BuildRequest
from trtkp.engine.feeds import check_profile
from trtkp.engine.options import HARDWARE_LEVELS
from trtkp.engine.trt.plugins import is_rtx
from trtkp.errors import InputError, JobError
from trtkp.shapes import Dim, TensorSpec

__all__ = ["DTYPES", "add_profile", "clear_tf32", "default_targets", "set_options", "set_targets"]

#: TensorRT's name of a type to NumPy's.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def set_options(trt: Any, builder: Any, config: Any, request: BuildRequest) -> None:
    """Effort, memory, compatibility, refit and embedded plugins.

    Raises:
        InputError: an option that this library does not know.
    """
    options = request.trt
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.threads is not None and hasattr(builder, "max_threads"):
        builder.max_threads = request.threads
    if hasattr(trt, "ProfilingVerbosity"):
        # names and tensors of layers, without which a profile cannot be read
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.refit or options.strip_weights:
        _set_flag(trt, config, "REFIT", "--refit")
    if options.strip_weights:
        _set_flag(trt, config, "STRIP_PLAN", "--strip-weights")
    embeds = options.embed_plugins and request.plugins is not None
    if embeds and not hasattr(config, "plugins_to_serialize"):
        raise InputError("--embed-plugins: this TensorRT embeds no plugins", remedy="leave it out")
    if options.version_compatible or embeds:
        option = "--version-compatible" if options.version_compatible else "--embed-plugins"
        _set_flag(trt, config, "VERSION_COMPATIBLE", option)
    if options.hardware_compatible != "none":
        _set_hardware(trt, config, options.hardware_compatible)
    if embeds:
        config.plugins_to_serialize = [str(request.plugins)]


def _set_flag(trt: Any, config: Any, name: str, option: str) -> None:
    flag = trt.BuilderFlag.__members__.get(name)
    if flag is None:
        raise InputError(f"{option}: {trt.__name__} {trt.__version__} knows no flag {name}", remedy="leave it out")
    config.set_flag(flag)


def _set_hardware(trt: Any, config: Any, wanted: str) -> None:
    if is_rtx(trt):  # which takes the setting, warns and leaves it out
        raise InputError(
            f"--hardware-compatible {wanted} means nothing to TensorRT-RTX", remedy="name architectures with --target"
        )
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    level = levels.__members__.get(HARDWARE_LEVELS[wanted]) if levels is not None else None
    if level is None:
        raise InputError(f"--hardware-compatible {wanted}: TensorRT {trt.__version__} has no such level")
    config.hardware_compatibility_level = level


def clear_tf32(trt: Any, config: Any) -> None:
    """Compute fp32 in fp32 (relative error 1e-6 and not 1e-3): every flavour rounds to TF32 by default."""
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)


def set_targets(trt: Any, config: Any, wanted: tuple[str, ...]) -> list[str]:
    """Choose the GPU architectures; an empty choice is ``default_targets``."""
    if not is_rtx(trt) or not hasattr(config, "num_compute_capabilities"):
        if wanted:
            raise InputError(f"targets {', '.join(wanted)}: this TensorRT builds for the GPU at hand only")
        return []
    members = trt.ComputeCapability.__members__
    known = [name.lower() for name in members if name.startswith("SM")]
    targets = list(dict.fromkeys(name.lower() for name in wanted)) or default_targets(known)
    valid = [*known, "current"]
    wrong = [name for name in targets if name not in valid]
    if wrong:
        raise InputError(f"no target {', '.join(wrong)}", remedy=f"choose from {', '.join(valid)}")
    if "current" in targets and len(targets) > 1:
        raise InputError("the target current goes with no other", remedy="name the architectures instead")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not config.set_compute_capability(members[name.upper()], index):
            raise JobError(f"the builder refused the target {name}")
    return targets


def default_targets(known: list[str]) -> list[str]:
    """Every architecture but Turing (``sm75``).

    An RTX engine holds the weights once and no machine code: that is made on the user's GPU. Measured on 1.7.1 with a
    20-convolution fp16 net of 19.2 M parameters (38.35 MB of weights): one target 38,821,356 bytes, these five
    38,812,316, all six 38,825,980; 0.6 s and 309 MiB of memory each (``benchmarks/results/rtx_targets.json``). So an
    engine for every GPU costs nothing. Turing is left out because NVIDIA's support matrix says that an engine which
    must also run there can be slower elsewhere; ask for ``sm75`` by name.
    """
    return [name for name in known if name != "sm75"]


def add_profile(builder: Any, config: Any, network: Any, request: BuildRequest) -> None:
    """The optimisation profile, held against the network's inputs first.

    Raises:
        InputError: shapes that do not fit, or an input whose values are a shape.
        JobError: the builder refused it.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    specs = [
        TensorSpec(
            t.name, DTYPES.get(t.dtype.name, t.dtype.name), tuple(_dim(i, int(d)) for i, d in enumerate(t.shape))
        )
        for t in tensors
    ]
    check_profile(specs, request.profile)
    profile = builder.create_optimization_profile()
    for tensor in tensors:
        if tensor.is_shape_tensor:
            raise InputError(f"input {tensor.name} is a shape tensor, which no profile here describes")
        if tensor.name in request.profile:
            profile.set_shape(tensor.name, *request.profile[tensor.name].shapes())
    if tensors and config.add_optimization_profile(profile) < 0:
        raise JobError("the builder refused the optimisation profile", file=request.onnx)


def _dim(axis: int, size: int) -> int | Dim:
    return Dim(f"d{axis}") if size < 0 else size
