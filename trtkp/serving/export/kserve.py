"""A KServe InferenceService manifest: trtkp's own server in a container, or KServe's Triton runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from trtkp.errors import InputError, JobError
from trtkp.settings import Setting, check_values

__all__ = ["inference_service", "write_manifest"]

#: Where KServe's storage initialiser puts what ``storage`` names.
_MOUNT = "/mnt/models"
_HTTP_PORT = 8080

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?", re.ASCII)
_URI = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.ASCII)
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", re.ASCII)


def inference_service(
    name: str,
    storage: str,
    *,
    image: Annotated[
        str | None,
        Setting("Container image that holds trtkp with its extra serve.", default="KServe's own Triton runtime"),
    ] = None,
    min_replicas: Annotated[int, Setting("Fewest replicas.", ge=0)] = 1,
    max_replicas: Annotated[int, Setting("Most replicas.", ge=1)] = 4,
    gpus: Annotated[int, Setting("GPUs of a replica.", ge=0)] = 0,
    cpu: Annotated[str, Setting("CPUs of a replica, as 2 or 500m.")] = "2",
    memory: Annotated[str, Setting("Memory of a replica, as 4Gi.")] = "2Gi",
) -> dict[str, Any]:
    """The manifest as a document (``serving.kserve.io/v1beta1``).

    Args:
        name: of the service; with ``image``, also the model's.
        storage: URI of the bundle's directory (with ``image``), else of a repository that ``export-triton`` wrote.
        image: container image that has ``trtkp[serve]``; None: KServe's Triton runtime.
        min_replicas: fewest replicas.
        max_replicas: most replicas.
        gpus: GPUs of a replica.
        cpu: CPUs of a replica, a Kubernetes quantity.
        memory: of a replica, a Kubernetes quantity.

    Raises:
        InputError: a name, URI or quantity that Kubernetes would refuse.
    """
    if not _NAME.fullmatch(name) or len(name) > 54:
        raise InputError(f"name {name!r}: Kubernetes takes up to 54 small letters, digits and dashes")
    if not _URI.fullmatch(storage):
        raise InputError(f"--storage {storage}: not a URI", remedy="write it as s3://bucket/path or pvc://claim/path")
    check_values(inference_service, {"min_replicas": min_replicas, "max_replicas": max_replicas, "gpus": gpus})
    if min_replicas > max_replicas:
        raise InputError(f"--min-replicas {min_replicas}, --max-replicas {max_replicas}: not a range")
    for option, value in (("--cpu", cpu), ("--memory", memory)):
        if not _QUANTITY.fullmatch(value):
            raise InputError(f"{option} {value}: no Kubernetes quantity", remedy="write it as 2, 500m or 4Gi")
    amounts = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    resources = {"requests": amounts, "limits": dict(amounts)}
    predictor: dict[str, Any] = {"minReplicas": min_replicas, "maxReplicas": max_replicas}
    if image is None:
        predictor["model"] = {
            "modelFormat": {"name": "triton"},
            "protocolVersion": "v2",
            "storageUri": storage,
            "resources": resources,
        }
    else:
        predictor["containers"] = [_container(name, storage, image, resources)]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": predictor},
    }


def write_manifest(manifest: dict[str, Any], output: Path | None) -> str:
    """The manifest as YAML, written to ``output`` if there is one.

    Raises:
        JobError: the file cannot be written.
    """
    import yaml

    text = yaml.safe_dump(manifest, sort_keys=False)
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise JobError(f"cannot be written ({error.strerror})", file=output) from None
    return text


def _container(name: str, storage: str, image: str, resources: dict[str, Any]) -> dict[str, Any]:
    # The bundle is mounted under a fixed name; a link gives it the model's. KServe's own name for the container.
    script = f"ln -s {_MOUNT} /tmp/{name} && exec trtkp serve /tmp/{name} --host 0.0.0.0 --port {_HTTP_PORT}"
    probe = {"httpGet": {"path": "/v2/health/ready", "port": _HTTP_PORT}, "periodSeconds": 5}
    return {
        "name": "kserve-container",
        "image": image,
        "command": ["/bin/sh", "-c"],
        "args": [script],
        "env": [
            {"name": "STORAGE_URI", "value": storage},
            {"name": "PROTOCOL", "value": "v2"},
        ],
        "ports": [{"containerPort": _HTTP_PORT, "protocol": "TCP"}],
        "readinessProbe": probe,
        "livenessProbe": {**probe, "httpGet": {"path": "/v2/health/live", "port": _HTTP_PORT}},
        "resources": resources,
    }
