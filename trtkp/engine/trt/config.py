"""Configure a build of TensorRT or TensorRT-RTX: options, TF32, target architectures, optimisation profile.

Each function sets one part of an ``IBuilderConfig``, and refuses what the installed library does not support.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtkp.engine.base import BuildRequest
from trtkp.engine.feeds import check_profile, split_profile
from trtkp.engine.options import HARDWARE_LEVELS
from trtkp.engine.trt.plugins import is_rtx
from trtkp.errors import InputError, JobError
from trtkp.shapes import Dim, TensorSpec

__all__ = ["DTYPES", "add_profiles", "clear_tf32", "default_targets", "set_options", "set_targets"]

#: NumPy's (or ml_dtypes') name of each of TensorRT's data types.
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


def set_options(trt: Any, builder: Any, config: Any, request: BuildRequest, used: Sequence[str] = ()) -> list[str]:
    """Set optimisation level, threads, workspace, sparsity, compatibility, refit and embedded plugins.

    Args:
        trt: the imported module.
        builder: the builder.
        config: its configuration.
        request: what to build.
        used: libraries of TensorRT's own plugins that a version-compatible engine needs, as the parser reports them.

    Returns:
        The plugin libraries that the engine will carry.

    Raises:
        InputError: the library does not support one of the options.
    """
    options = request.trt
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.threads is not None and hasattr(builder, "max_threads"):
        builder.max_threads = request.threads
    if hasattr(trt, "ProfilingVerbosity"):
        # Engines keep the layers' names and tensors only at this level, and a profile needs them to name its layers.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if request.sparse and "SPARSE_WEIGHTS" in trt.BuilderFlag.__members__:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if options.refit:
        _set_flag(trt, config, "REFIT", "--refit")
    if options.strip_weights:
        _set_flag(trt, config, "STRIP_PLAN", "--strip-weights")
        if not options.refit:
            # The engine gets back the weights that it was built with. Told so, TensorRT folds and fuses them as in an
            # engine that is never refitted.
            known = "REFIT_IDENTICAL" in trt.BuilderFlag.__members__
            _set_flag(trt, config, "REFIT_IDENTICAL" if known else "REFIT", "--strip-weights")
    embeds = options.embed_plugins and request.plugins is not None
    if embeds and not hasattr(config, "plugins_to_serialize"):
        raise InputError("--embed-plugins: this TensorRT cannot embed plugins", remedy="leave the option out")
    if options.version_compatible or embeds:
        option = "--version-compatible" if options.version_compatible else "--embed-plugins"
        _set_flag(trt, config, "VERSION_COMPATIBLE", option)
    if options.exclude_lean_runtime and (options.version_compatible or embeds):
        _set_flag(trt, config, "EXCLUDE_LEAN_RUNTIME", "--exclude-lean-runtime")
    if options.hardware_compatible != "none":
        _set_hardware(trt, config, options.hardware_compatible)
    if not (options.version_compatible or embeds):
        return []
    carried = [str(request.plugins)] if embeds else []
    carried += [name for name in used if request.plugins is None or Path(name).name != request.plugins.name]
    if carried:
        config.plugins_to_serialize = carried
    return carried


def _set_flag(trt: Any, config: Any, name: str, option: str) -> None:
    flag = trt.BuilderFlag.__members__.get(name)
    if flag is None:
        raise InputError(f"{option}: {trt.__name__} {trt.__version__} has no flag {name}", remedy="leave it out")
    config.set_flag(flag)


def _set_hardware(trt: Any, config: Any, wanted: str) -> None:
    if is_rtx(trt):  # it accepts the setting, logs a warning and ignores it
        raise InputError(
            f"--hardware-compatible {wanted}: TensorRT-RTX ignores it", remedy="name architectures with --target"
        )
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    level = levels.__members__.get(HARDWARE_LEVELS[wanted]) if levels is not None else None
    if level is None:
        raise InputError(f"--hardware-compatible {wanted}: TensorRT {trt.__version__} has no such level")
    config.hardware_compatibility_level = level


def clear_tf32(trt: Any, config: Any) -> None:
    """Turn TF32 off; all versions turn it on by default.

    TF32 raises the relative error of an fp32 convolution from about 1e-6 to 1e-3, and ``verify`` could no longer tell a
    wrong kernel from rounding.
    """
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)


def set_targets(trt: Any, config: Any, wanted: tuple[str, ...]) -> list[str]:
    """Set the GPU architectures to build for.

    Args:
        trt: the imported module.
        config: the builder's configuration.
        wanted: architectures such as ``("sm86", "sm89")``, or ``("current",)``; empty for `default_targets`.

    Returns:
        The architectures that were set; empty for TensorRT, which builds for the GPU of this machine only.

    Raises:
        InputError: an architecture is unknown, ``current`` is combined with others, or the library has no targets.
        JobError: the builder refused a target.
    """
    if not is_rtx(trt) or not hasattr(config, "num_compute_capabilities"):
        if wanted:
            raise InputError(f"targets {', '.join(wanted)}: this TensorRT builds for this machine's GPU only")
        return []
    members = trt.ComputeCapability.__members__
    known = [name.lower() for name in members if name.startswith("SM")]
    targets = list(dict.fromkeys(name.lower() for name in wanted)) or default_targets(known)
    valid = [*known, "current"]
    wrong = [name for name in targets if name not in valid]
    if wrong:
        raise InputError(f"no target {', '.join(wrong)}", remedy=f"choose from {', '.join(valid)}")
    if "current" in targets and len(targets) > 1:
        raise InputError("the target current cannot be combined with others", remedy="name the architectures instead")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not config.set_compute_capability(members[name.upper()], index):
            raise JobError(f"the builder refused the target {name}")
    return targets


def default_targets(known: list[str]) -> list[str]:
    """Return every known architecture except Turing (``sm75``).

    An RTX engine holds the weights once and no machine code, which is compiled on the user's GPU. More targets
    therefore cost nothing. Measured with 1.7.1 on a 20-convolution fp16 net of 19.2 M parameters (38.35 MB of weights):
    38,821,356 bytes for one target, 38,812,316 for these five, 38,825,980 for all six; 0.6 s and 309 MiB of memory in
    each case (``benchmarks/results/rtx_targets.json``). Turing is left out because, by NVIDIA's support matrix, an
    engine that must also run there can be slower on other GPUs; request ``sm75`` by name.

    Example:
        >>> default_targets(["sm75", "sm86", "sm89"])
        ['sm86', 'sm89']
    """
    return [name for name in known if name != "sm75"]


def add_profiles(builder: Any, config: Any, network: Any, request: BuildRequest) -> None:
    """Check the request's profile against the network's inputs, and add it to the configuration.

    With ``tune_batches`` it is split (`trtkp.engine.feeds.split_profile`), and every part is a profile.

    Raises:
        InputError: shapes do not fit, or an input is a shape tensor (TensorRT reads its values as a shape).
        JobError: the builder refused the profile.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    specs = [
        TensorSpec(
            t.name, DTYPES.get(t.dtype.name, t.dtype.name), tuple(_dim(i, int(d)) for i, d in enumerate(t.shape))
        )
        for t in tensors
    ]
    check_profile(specs, request.profile)
    for tensor in tensors:
        if tensor.is_shape_tensor:
            raise InputError(f"input {tensor.name} is a shape tensor, which trtkp's profiles cannot describe")
    for part in split_profile(request.profile, request.trt.tune_batches) if tensors else ():
        profile = builder.create_optimization_profile()
        for name, limits in part.items():
            profile.set_shape(name, *limits.shapes())
        if config.add_optimization_profile(profile) < 0:
            raise JobError("the builder refused the optimisation profile", file=request.onnx)


def _dim(axis: int, size: int) -> int | Dim:
    return Dim(f"d{axis}") if size < 0 else size
