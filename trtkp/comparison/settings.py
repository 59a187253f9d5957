"""How a bundle was built: its settings by name, and a command that builds it again."""

from __future__ import annotations

import os
import shlex

from trtkp.bundle import Bundle
from trtkp.bundle.manifest import Manifest, TensorRTRecord
from trtkp.engine.options import TrtOptions
from trtkp.pruning.method import Method
from trtkp.pruning.methods.registry import METHODS
from trtkp.settings import settings_of

__all__ = ["build_command", "build_settings"]


def build_settings(bundle: Bundle) -> dict[str, str]:
    """Return what a reader needs to judge a bundle's figures: method, precision, plan, libraries."""
    manifest = bundle.manifest
    lowerings = [layer.lowering for layer in manifest.layers if layer.lowering is not None]
    plan = ", ".join(f"{lowerings.count(name)} {name}" for name in sorted(set(lowerings))) or "nothing packed"
    threads = f", {manifest.plan.threads} threads" if manifest.plan.threads else ""
    found = {
        "method": manifest.method,
        **{key.replace("_", "-"): str(value) for key, value in manifest.settings.items() if value is not None},
        "source": os.path.normpath(bundle.path / manifest.source.file),
        "backend": manifest.backend,
        "precision": manifest.precision,
        "targets": ", ".join(manifest.targets),
        "profile": ", ".join(
            f"{name} {'..'.join('x'.join(map(str, limits[key])) for key in ('min', 'opt', 'max'))}"
            for name, limits in manifest.profile.items()
        ),
        "plan": f"{manifest.plan.status}: {plan}{threads}",
        "built": f"{manifest.created} by trtkp {manifest.trtkp}",
        "libraries": ", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
    }
    record = manifest.quantisation
    if record is not None:
        kept = sum(choice.precision == manifest.precision for choice in record.layers.values())
        found["quantised"] = (
            f"{kept} of {len(record.layers)} layers {manifest.precision}, the rest {record.fallback}; ranges by "
            f"{record.method}"
        )
    return {key: value for key, value in found.items() if value}


def build_command(bundle: Bundle) -> str:
    """Return a ``trtkp build`` command that builds the bundle again from its source.

    The command lacks ``--lowering``, because the manifest does not say whether a lowering was forced on every layer.
    """
    manifest = bundle.manifest
    words = ["trtkp", "build", os.path.normpath(bundle.path / manifest.source.file), *_method(manifest)]
    words += ["--backend", manifest.backend, "--precision", manifest.precision]
    if manifest.precision == "fp16" and not manifest.keep_io:
        words.append("--convert-io")
    if manifest.quantisation is not None:
        words += ["--calibration", str(bundle.path)]
    if manifest.source.arch is not None:
        words += ["--arch", manifest.source.arch]
    for target in manifest.targets:
        words += ["--target", target]
    if manifest.tensorrt is not None:
        words += _tensorrt(manifest.tensorrt)
    for name, limits in manifest.profile.items():
        for key in ("min", "opt", "max"):
            words += [f"--{key}", f"{name}:{'x'.join(map(str, limits[key]))}"]
    return shlex.join([*words, "-o", str(bundle.path)])


def _tensorrt(record: TensorRTRecord) -> list[str]:
    words = []
    for flag, value in (("--level", record.optimization_level), ("--workspace", record.workspace_mib)):
        words += [flag, str(value)] if value is not None else []
    if record.tune_batches:
        words += ["--tune-batches", ",".join(map(str, record.tune_batches))]
    if record.hardware_compatible != "none":
        words += ["--hardware-compatible", record.hardware_compatible]
    switches = [item for item in settings_of(TrtOptions).values() if item.plain is bool]
    return words + [item.flag for item in switches if getattr(record, item.name)]


def _method(manifest: Manifest) -> list[str]:
    option = METHODS.get(manifest.method, Method).option
    words = ["--method", manifest.method] if option is None else [option]
    settings = {key: value for key, value in manifest.settings.items() if value is not None}
    if settings.get("ratio") is None:
        settings.pop("allocation", None)  # without a ratio there is nothing to allocate
    else:
        settings.pop("n", None)
    for name, item in settings_of(METHODS[manifest.method]).items() if manifest.method in METHODS else ():
        value = settings.get(name, item.default)
        if item.setting.trained or value == item.default or isinstance(value, dict):  # by layers: no flag says that
            continue
        if isinstance(value, bool):
            words.append(item.flag if value else f"--no-{item.flag.removeprefix('--')}")
        else:
            words += [item.flag, str(value)]
    for flag, patterns in (("--layers", manifest.include), ("--skip", manifest.skip)):
        for pattern in patterns:
            words += [flag, pattern]
    return words
