"""Export bundles as a Triton model repository: configurations, model files, and a script that starts Triton.

The configurations are written through Triton's own protobuf message (``inference.ModelConfig``), which is part of
tritonclient, so a misspelt field cannot occur.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from trtkp.bundle import Bundle
from trtkp.engine import get_backend
from trtkp.errors import InputError
from trtkp.files import check_folder, unwritable, writing
from trtkp.machine.processes import Closing
from trtkp.serving.contract import Contract
from trtkp.serving.models.repository import find_bundles
from trtkp.serving.options import ServeOptions
from trtkp.serving.protocol.config import model_config

__all__ = ["TritonRepository", "export_triton"]

#: Name of the script that starts Triton, in the repository.
_SCRIPT = "run-tritonserver.sh"
#: Triton only loads a plugin library and calls no function of it. This one registers the plugins when it is loaded.
_REGISTERING = "libtrtkp_register.so"


@dataclass(frozen=True)
class TritonRepository:
    """What was written.

    Attributes:
        path: the model repository.
        models: versions of every model, by name.
        command: the ``tritonserver`` command line, which the script in the repository runs.
        notes: remarks for the user, one line each.
    """

    path: Path
    models: dict[str, list[str]]
    command: str
    notes: tuple[str, ...] = ()


def export_triton(bundles: Sequence[Path], output: Path, options: ServeOptions | None = None) -> TritonRepository:
    """Write a model repository: ``<name>/config.pbtxt`` and ``<name>/<version>/model.onnx`` or ``model.plan``.

    Args:
        bundles: bundles, or directories of numbered bundles.
        output: directory of the repository; it must be empty or not exist.
        options: batching, instances and limits; None for the defaults.

    Raises:
        InputError: a path is not a bundle, versions of one model have different tensors, or the output is not empty.
        IntegrityError: a file of a bundle is missing or was changed.
    """
    from google.protobuf import text_format

    options = options or ServeOptions()
    found = find_bundles(bundles)
    check_folder(output)
    if output.exists() and any(output.iterdir()):
        raise InputError("exists and is not empty", file=output, remedy="choose another -o, or remove it")
    notes: list[str] = []
    configs: dict[str, Any] = {}
    models: dict[str, list[str]] = {}
    with writing(output), _Staging(output) as staging:
        for name, version, bundle in found:
            platform, note = _platform(bundle)
            notes += [f"{name}: {note}"] if note else []
            contract = Contract.of(bundle, name, version, options.max_batch)
            opt = bundle.manifest.profile[bundle.manifest.inputs[0].name]["opt"]
            config = model_config(
                contract, options, platform=platform, gpu=platform == "tensorrt_plan", usual=opt[0] if opt else None
            )
            record = bundle.manifest.tensorrt
            if platform == "tensorrt_plan" and record is not None and record.tune_batches:
                # Triton takes an engine's first profile alone, unless the others are named.
                sizes = {*record.tune_batches, bundle.manifest.profile[bundle.manifest.inputs[0].name]["max"][0]}
                config.instance_group[0].profile.extend(str(number) for number in range(len(sizes)))
            if options.threads is not None and platform == "onnxruntime_onnx":
                config.parameters["intra_op_thread_count"].string_value = str(options.threads)
            config.version_policy.all.SetInParent()
            if name in configs and configs[name] != config:
                raise InputError(f"versions of {name} differ in their tensors or profiles", file=bundle.path)
            configs[name] = config
            models.setdefault(name, []).append(version)
            _copy(bundle, platform, staging / name / version)
        for name, config in configs.items():
            text = text_format.MessageToString(config)
            (staging / name / "config.pbtxt").write_text(text, encoding="utf-8")
        command = _command(output, _backend_settings(staging, output, found))
        script = staging / _SCRIPT
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        rights = script.stat().st_mode
        script.chmod(rights | (rights & 0o444) >> 2)  # whoever may read it may run it
        staging.publish()
    return TritonRepository(output, models, command, tuple(notes))


class _Staging(Closing):
    """A hidden directory beside the output, which is renamed to it at the end or deleted on failure."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._path = output.absolute().with_name(f".{output.name}.exporting")
        try:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path.mkdir(parents=True)
        except OSError as error:
            raise unwritable(error, output) from None

    def __truediv__(self, name: str) -> Path:
        return self._path / name

    def publish(self) -> None:
        if self._output.exists():
            self._output.rmdir()
        self._path.rename(self._output)

    def close(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _platform(bundle: Bundle) -> tuple[str, str]:
    """Triton's platform for a bundle, and a note for the user if that is not the bundle's own backend."""
    backend = get_backend(bundle.manifest.backend)
    return backend.triton_platform, backend.triton_note


def _copy(bundle: Bundle, platform: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    if platform == "tensorrt_plan":
        if bundle.manifest.tensorrt is not None and bundle.manifest.tensorrt.strip_weights:
            raise InputError(
                "its engine was built without weights, and Triton cannot refit an engine", file=bundle.path,
                remedy="build without --strip-weights",
            )  # fmt: skip
        shutil.copyfile(bundle.file(get_backend(bundle.manifest.backend).artefact), folder / "model.plan")
        return
    shutil.copyfile(bundle.file("engine.onnx"), folder / "model.onnx")
    for name in bundle.manifest.files:
        if name.startswith("engine.onnx."):  # external data, to which the graph refers by this name
            shutil.copyfile(bundle.file(name), folder / name)


def _backend_settings(staging: _Staging, output: Path, found: Sequence[tuple[str, str, Bundle]]) -> list[str]:
    """Return the settings of Triton's TensorRT backend, and copy the plugin library if an engine needs it.

    The library is copied into the directory of the first model that needs it: in the repository itself, Triton would
    take another directory for a model.

    Raises:
        InputError: the library is not installed, or is another build than an engine was built with.
    """
    settings = []
    needy = [(name, bundle) for name, _, bundle in found if _needs_library(bundle)]
    if needy:
        from trtkp.kernels.capi import find_library

        library = find_library()
        for _, bundle in needy:
            bundle.check_plugin_library(library)
        first = needy[0][0]
        for file in (library, library.with_name(_REGISTERING)):  # the second loads the first
            shutil.copyfile(file, staging / first / file.name)
        settings.append(f"plugins={output.absolute() / first / _REGISTERING}")
    if any(b.manifest.tensorrt is not None and b.manifest.tensorrt.carries_code for _, _, b in found):
        settings.append("version-compatible=true")  # allows engines to load the host code they contain
    return settings


def _needs_library(bundle: Bundle) -> bool:
    record = bundle.manifest.tensorrt
    return record is not None and record.plugin_layers > 0 and not record.embed_plugins


def _command(repository: Path, settings: Sequence[str]) -> str:
    path = repository.absolute()
    command = ["tritonserver", f"--model-repository={path}", "--exit-on-error=true", "--strict-readiness=true"]
    command += [f"--backend-config=tensorrt,{setting}" for setting in settings]
    return " ".join(map(quote, command))
