"""Write a KServe ``InferenceService`` manifest: for trtkp's own server in a container, or for KServe's Triton runtime.

The manifest is validated here, so that a mistake shows before it is applied to a cluster.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from trtkp.errors import InputError
from trtkp.files import write_file
from trtkp.settings import Setting, check_values

__all__ = ["inference_service", "write_manifest"]

#: Directory into which KServe's storage initialiser downloads ``storage``.
_MOUNT = "/mnt/models"
#: The port that KServe expects a container to listen on by default.
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
    """Make the manifest (``serving.kserve.io/v1beta1``) as a document of dicts and lists.

    Args:
        name: name of the service and, with ``image``, of the model.
        storage: URI of the bundle's directory with ``image``; otherwise of a repository written by ``export-triton``.
        image: container image with ``trtkp[serve]`` installed; None for KServe's Triton runtime.
        min_replicas: least number of replicas.
        max_replicas: largest number of replicas.
        gpus: GPUs per replica.
        cpu: CPUs per replica, as a Kubernetes quantity.
        memory: memory per replica, as a Kubernetes quantity.

    Raises:
        InputError: a name, URI or quantity that Kubernetes would refuse.

    Example:
        >>> service = inference_service("kep", "s3://models/kep", image="registry.example/trtkp:0.1")
        >>> service["spec"]["predictor"]["containers"][0]["resources"]["limits"]
        {'cpu': '2', 'memory': '2Gi'}
    """
    if not _NAME.fullmatch(name) or len(name) > 54:
        raise InputError(f"name {name!r}: Kubernetes allows up to 54 lower-case letters, digits and dashes")
    if not _URI.fullmatch(storage):
        raise InputError(f"--storage {storage}: not a URI", remedy="write it as s3://bucket/path or pvc://claim/path")
    check_values(inference_service, {"min_replicas": min_replicas, "max_replicas": max_replicas, "gpus": gpus})
    if min_replicas > max_replicas:
        raise InputError(f"--min-replicas {min_replicas}, --max-replicas {max_replicas}: not a range")
    for option, value in (("--cpu", cpu), ("--memory", memory)):
        if not _QUANTITY.fullmatch(value):
            raise InputError(f"{option} {value}: not a Kubernetes quantity", remedy="write it as 2, 500m or 4Gi")
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
    """Return the manifest as YAML, and write it to ``output`` if that is given.

    Raises:
        JobError: the file cannot be written.
    """
    import yaml

    text = yaml.safe_dump(manifest, sort_keys=False)
    if output is not None:
        write_file(output, text)
    return text


def _container(name: str, storage: str, image: str, resources: dict[str, Any]) -> dict[str, Any]:
    # The server names a model after its directory, but KServe mounts every bundle as /mnt/models: hence the link.
    script = f"ln -s {_MOUNT} /tmp/{name} && exec trtkp serve /tmp/{name} --host 0.0.0.0 --port {_HTTP_PORT}"
    probe = {"httpGet": {"path": "/v2/health/ready", "port": _HTTP_PORT}, "periodSeconds": 5}
    return {
        "name": "kserve-container",  # KServe looks for a container of this name
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
