"""The Open Inference Protocol over gRPC, with the protobuf messages of tritonclient.

gRPC hands over requests as bytes, and this module parses them: an unparsable message is then an invalid argument, while
gRPC's own parsing would report an internal error.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as pb

from trtkp.serving.contract import RawTensor
from trtkp.serving.errors import BadRequest, ServeError, Unauthorised
from trtkp.serving.models.service import Inference, Service
from trtkp.serving.protocol import describe
from trtkp.serving.protocol.config import model_config
from trtkp.serving.protocol.wire import refuse_parameters, timeout_of

__all__ = ["make_grpc_server"]

_SERVICE = "inference.GRPCInferenceService"

#: Field of ``InferTensorContents`` that holds the values of each type. FP16 and BF16 have none and need raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def make_grpc_server(service: Service, token: str | None = None) -> grpc.aio.Server:
    """Make a gRPC server in the running event loop. The caller adds a port and starts it.

    Args:
        service: the models to serve.
        token: bearer token that every method except ``ServerLive`` and ``ServerReady`` requires; None for no token.
    """
    methods = _Methods(service)
    unary: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
        "ServerLive": (pb.ServerLiveRequest, methods.live),
        "ServerReady": (pb.ServerReadyRequest, methods.ready),
        "ModelReady": (pb.ModelReadyRequest, methods.model_ready),
        "ServerMetadata": (pb.ServerMetadataRequest, methods.metadata),
        "ModelMetadata": (pb.ModelMetadataRequest, methods.model_metadata),
        "ModelConfig": (pb.ModelConfigRequest, methods.config),
        "ModelStatistics": (pb.ModelStatisticsRequest, methods.statistics),
        "RepositoryIndex": (pb.RepositoryIndexRequest, methods.index),
        "ModelInfer": (pb.ModelInferRequest, methods.infer),
    }
    handlers: dict[str, grpc.RpcMethodHandler] = {
        name: grpc.unary_unary_rpc_method_handler(_unary(kind, method, None if name in _OPEN else token))
        for name, (kind, method) in unary.items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(_stream(methods, token))
    server = grpc.aio.server(
        maximum_concurrent_rpcs=service.options.connections,
        options=[
            ("grpc.max_receive_message_length", service.options.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # otherwise a second server could silently share a port that is in use
        ],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    return server


#: Methods that never require a token, like ``/v2/health/`` over HTTP.
_OPEN = ("ServerLive", "ServerReady")


def _unary(kind: type[Message], method: Callable[[Any], Awaitable[Message]], token: str | None) -> Any:
    async def call(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            _authorise(context, token)
            answer = await method(_parse(kind, data))
            return answer.SerializeToString()
        except ServeError as error:
            await context.abort(getattr(grpc.StatusCode, error.code), str(error))
            raise  # not reached, since abort() raises; it tells the type checker so

    return call


def _stream(methods: _Methods, token: str | None) -> Any:
    async def call(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        try:
            _authorise(context, token)
        except ServeError as error:
            await context.abort(getattr(grpc.StatusCode, error.code), str(error))
        async for data in requests:
            try:
                answer = pb.ModelStreamInferResponse(
                    infer_response=await methods.infer(_parse(pb.ModelInferRequest, data))
                )
            except ServeError as error:
                answer = pb.ModelStreamInferResponse(error_message=str(error))
            yield answer.SerializeToString()

    return call


def _authorise(context: grpc.aio.ServicerContext, token: str | None) -> None:
    given = next((value for key, value in context.invocation_metadata() or () if key == "authorization"), "")
    if token is not None and not hmac.compare_digest(str(given).encode(), f"Bearer {token}".encode()):
        raise Unauthorised("no valid bearer token")


def _parse(kind: type[Message], data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadRequest(f"the message is not a {kind.DESCRIPTOR.name}") from None


class _Methods:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, request: Any) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, request: Any) -> Message:
        return pb.ServerReadyResponse(ready=self._service.ready)

    async def model_ready(self, request: Any) -> Message:
        model = self._service.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=model.ready and not self._service.draining)

    async def metadata(self, request: Any) -> Message:
        return ParseDict(describe.server_metadata(), pb.ServerMetadataResponse())

    async def model_metadata(self, request: Any) -> Message:
        model = self._service.find(request.name, request.version)
        return ParseDict(describe.model_metadata(self._service, model), pb.ModelMetadataResponse())

    async def config(self, request: Any) -> Message:
        model = self._service.find(request.name, request.version)
        return pb.ModelConfigResponse(config=model_config(model.contract, self._service.options))

    async def statistics(self, request: Any) -> Message:
        service = self._service
        models = [service.find(request.name, request.version)] if request.name else service.all_models
        document = {"model_stats": [describe.model_statistics(model) for model in models]}
        return ParseDict(document, pb.ModelStatisticsResponse())

    async def index(self, request: Any) -> Message:
        return ParseDict({"models": describe.index(self._service)}, pb.RepositoryIndexResponse())

    async def infer(self, request: Any) -> Message:
        service = self._service
        with service.exchange("grpc", uuid.uuid4().hex) as exchange:
            model = exchange.model = service.find(request.model_name, request.model_version)
            model.check_room()
            with service.holding(request.ByteSize()):
                outputs = await service.infer(model, _decode(request))
            contract = model.contract
            answer = pb.ModelInferResponse(model_name=contract.name, model_version=contract.version, id=request.id)
            for name, value in outputs.items():
                spec = contract.outputs[name]
                answer.outputs.add(name=name, datatype=spec.datatype, shape=value.shape)
                answer.raw_output_contents.append(value.astype(spec.dtype, copy=False).tobytes())
        return answer


def _decode(request: Any) -> Inference:
    """Decode an inference message.

    Raises:
        BadRequest: contents and raw contents are mixed, or a parameter is not supported.
    """
    parameters = _parameters(request)
    refuse_parameters(parameters)
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    tensors = []
    for number, tensor in enumerate(request.inputs):
        refuse_parameters(_parameters(tensor))
        if raw and tensor.HasField("contents"):
            raise BadRequest(f"input {tensor.name[:80]} has both contents and raw_input_contents")
        data = raw[number] if raw else _contents(tensor)
        tensors.append(RawTensor(tensor.name, tensor.datatype, list(tensor.shape), data))
    for output in request.outputs:
        refuse_parameters(_parameters(output))
    names = [output.name for output in request.outputs]
    return Inference(tensors, names, request.id, timeout_of(parameters.get("timeout")))


def _contents(tensor: Any) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadRequest(f"input {tensor.name[:80]}: datatype {tensor.datatype[:40]} needs raw_input_contents")
    return list(getattr(tensor.contents, field))


def _parameters(message: Any) -> dict[str, Any]:
    return {
        name: getattr(value, which)
        for name, value in message.parameters.items()
        if (which := value.WhichOneof("parameter_choice")) is not None
    }
