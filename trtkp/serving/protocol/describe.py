"""Metadata and statistics of the server and its models, as documents that HTTP and gRPC both send."""

from __future__ import annotations

from typing import Any

from trtkp.serving.contract import TensorContract
from trtkp.serving.models.model import Model
from trtkp.serving.models.service import EXTENSIONS, Service
from trtkp.version import __version__

__all__ = ["index", "model_metadata", "model_statistics", "server_metadata"]


def server_metadata() -> dict[str, Any]:
    """Name, version and protocol extensions of the server."""
    return {"name": "trtkp", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(service: Service, model: Model) -> dict[str, Any]:
    """Name, versions, platform, inputs and outputs of a model."""
    contract = model.contract
    return {
        "name": contract.name,
        "versions": list(service.models[contract.name]),
        "platform": contract.platform,
        "inputs": [_tensor(tensor) for tensor in contract.inputs.values()],
        "outputs": [_tensor(tensor) for tensor in contract.outputs.values()],
    }


def model_statistics(model: Model) -> dict[str, Any]:
    """Counts and times of a model since the start; times are in nanoseconds."""
    totals = model.statistics
    return {
        "name": model.contract.name,
        "version": model.contract.version,
        "inference_count": totals.rows,
        "execution_count": totals.runs,
        "inference_stats": {
            "success": {"count": totals.success, "ns": totals.success_ns},
            "fail": {"count": totals.failed, "ns": totals.failed_ns},
            "queue": {"count": totals.success, "ns": totals.queue_ns},
            "compute_infer": {"count": totals.runs, "ns": totals.compute_ns},
        },
    }


def index(service: Service) -> list[dict[str, str]]:
    """Every version of every model, with its state."""
    return [
        {
            "name": model.contract.name,
            "version": model.contract.version,
            "state": "READY" if model.ready else "UNAVAILABLE",
            "reason": model.problem,
        }
        for model in service.all_models
    ]


def _tensor(tensor: TensorContract) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
