"""The Open Inference Protocol over gRPC, with the protobuf messages of tritonclient."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as pb

from trtkp.serving.contract import Contract, RawTensor
from trtkp.serving.errors import BadRequest, ServeError, TooLarge
from trtkp.serving.models.service import Inference, Service
from trtkp.serving.protocol import describe
from trtkp.serving.protocol.config import model_config
from trtkp.serving.protocol.http2.call import Answer, Call, Method
from trtkp.serving.protocol.http2.messages import Buffer
from trtkp.serving.protocol.tensors import InferMessage, as_stream_answer, encode, largest_message, name_of, values
from trtkp.serving.protocol.wire import refuse_parameters, timeout_of

__all__ = ["rpc_methods"]

_SERVICE = "inference.GRPCInferenceService"
_HEALTH = "grpc.health.v1.Health"

#: Most bytes of a message that holds names only.
_NAMES_BYTES = 1 << 14


def rpc_methods(service: Service) -> Mapping[str, Method]:
    """The methods of the protocol, and gRPC's own health check, by their paths.

    ``ServerLive``, ``ServerReady`` and the health check need no token, like ``/v2/health/`` over HTTP.
    """
    answers = _Answers(service)
    quick: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
        "ModelReady": (pb.ModelReadyRequest, answers.model_ready),
        "ServerMetadata": (pb.ServerMetadataRequest, answers.metadata),
        "ModelMetadata": (pb.ModelMetadataRequest, answers.model_metadata),
        "ModelConfig": (pb.ModelConfigRequest, answers.config),
        "ModelStatistics": (pb.ModelStatisticsRequest, answers.statistics),
        "RepositoryIndex": (pb.RepositoryIndexRequest, answers.index),
    }
    health: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
        f"/{_SERVICE}/ServerLive": (pb.ServerLiveRequest, answers.live),
        f"/{_SERVICE}/ServerReady": (pb.ServerReadyRequest, answers.ready),
    }
    methods = {
        f"/{_SERVICE}/{name}": Method(lambda: _NAMES_BYTES, quick=partial(_quick, kind, answer))
        for name, (kind, answer) in quick.items()
    }
    methods |= {
        path: Method(lambda: _NAMES_BYTES, quick=partial(_quick, kind, answer), open=True, health=True)
        for path, (kind, answer) in health.items()
    }
    methods[f"/{_HEALTH}/Check"] = Method(lambda: _NAMES_BYTES, quick=answers.check, open=True, health=True)

    def limit() -> int:  # a reload may bring models that need more
        largest = max((largest_message(model.contract) for model in service.all_models), default=0)
        return min(service.options.body_bytes, largest)

    methods[f"/{_SERVICE}/ModelInfer"] = Method(limit, unary=answers.infer, check=answers.admit)
    methods[f"/{_SERVICE}/ModelStreamInfer"] = Method(limit, stream=answers.stream)
    return methods


def _quick(kind: type[Message], answer: Callable[[Any], Message], data: Buffer) -> bytes:
    try:
        request = kind.FromString(bytes(data))
    except DecodeError:
        raise BadRequest(f"the message is not a {kind.DESCRIPTOR.name}") from None
    return answer(request).SerializeToString()


class _Answers:
    def __init__(self, service: Service) -> None:
        self._service = service

    def live(self, request: Any) -> Message:
        return pb.ServerLiveResponse(live=True)

    def ready(self, request: Any) -> Message:
        return pb.ServerReadyResponse(ready=self._service.ready)

    def check(self, data: Buffer) -> bytes:
        """``grpc.health.v1.Health/Check``: of the server, or of the model that is named as the service."""
        try:  # of the same form as HealthCheckRequest: field 1 is a text
            name = pb.ModelReadyRequest.FromString(bytes(data)).name
        except DecodeError:
            raise BadRequest("the message is not a HealthCheckRequest") from None
        service = self._service
        ready = service.ready if name in ("", _SERVICE, _HEALTH) else service.find(name).ready and not service.draining
        return b"\x08\x01" if ready else b"\x08\x02"  # field 1: SERVING or NOT_SERVING

    def model_ready(self, request: Any) -> Message:
        model = self._service.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=model.ready and not self._service.draining)

    def metadata(self, request: Any) -> Message:
        return ParseDict(describe.server_metadata(), pb.ServerMetadataResponse())

    def model_metadata(self, request: Any) -> Message:
        model = self._service.find(request.name, request.version)
        return ParseDict(describe.model_metadata(self._service, model), pb.ModelMetadataResponse())

    def config(self, request: Any) -> Message:
        model = self._service.find(request.name, request.version)
        return pb.ModelConfigResponse(config=model_config(model.contract, self._service.options))

    def statistics(self, request: Any) -> Message:
        service = self._service
        models = [service.find(request.name, request.version)] if request.name else service.all_models
        document = {"model_stats": [describe.model_statistics(model) for model in models]}
        return ParseDict(document, pb.ModelStatisticsResponse())

    def index(self, request: Any) -> Message:
        return ParseDict({"models": describe.index(self._service)}, pb.RepositoryIndexResponse())

    def admit(self, part: bytes | bytearray, length: int) -> None:
        """Refuse a message that is still arriving if its model is unknown, has no room, or needs no such message."""
        name, version = name_of(part)
        if not name:  # another field comes first
            return
        try:
            model = self._service.find(name, version)
            model.check_room()
            limit = largest_message(model.contract)
            if length > limit:
                raise TooLarge(f"a message of {length} bytes is larger than {limit} bytes, the most that {name} needs")
        except ServeError:
            with self._service.exchange("grpc", uuid.uuid4().hex):  # counts and logs it
                raise

    async def infer(self, data: Buffer, call: Call) -> Answer:
        """``ModelInfer``."""
        service = self._service
        with service.exchange("grpc", uuid.uuid4().hex) as exchange:
            message = InferMessage.parse(data)
            request = message.request
            model = exchange.model = service.find(request.model_name, request.model_version)
            model.check_room()
            outputs = await service.infer(model, await self._decode(message, model.contract, call))
            return encode(model.contract, request.id, outputs)

    async def stream(self, data: Buffer, call: Call) -> Answer:
        """One message of ``ModelStreamInfer``; an error is part of the answer, and the stream goes on."""
        try:
            answer = await self.infer(data, call)
        except ServeError as error:
            return [pb.ModelStreamInferResponse(error_message=str(error)).SerializeToString()]
        return as_stream_answer(answer)

    async def _decode(self, message: InferMessage, contract: Contract, call: Call) -> Inference:
        """Decode an inference message.

        Raises:
            BadRequest: contents and raw contents are mixed, or a parameter is not supported.
        """
        request, raw = message.request, message.raw
        parameters = _parameters(request)
        refuse_parameters(parameters)
        if raw and len(raw) != len(request.inputs):
            raise BadRequest(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
        tensors = []
        for number, (tensor, contents) in enumerate(zip(request.inputs, message.contents, strict=True)):
            refuse_parameters(_parameters(tensor))
            if raw and contents is not None:
                raise BadRequest(f"input {tensor.name[:80]} has both contents and raw_input_contents")
            data = raw[number] if raw else await self._values(contract, tensor, contents or b"", call)
            tensors.append(RawTensor(tensor.name, tensor.datatype, list(tensor.shape), data))
        for output in request.outputs:
            refuse_parameters(_parameters(output))
        names = [output.name for output in request.outputs]
        limits = [limit for limit in (timeout_of(parameters.get("timeout")), call.seconds_left) if limit is not None]
        return Inference(tensors, names, request.id, min(limits, default=None))

    async def _values(self, contract: Contract, tensor: Any, contents: Buffer, call: Call) -> Buffer:
        spec = contract.inputs.get(tensor.name)
        if spec is None or spec.datatype != tensor.datatype:
            return b""  # refused for that
        call.hold(7 * len(contents))  # a value of one byte may become one of eight
        return await values(tensor.name, tensor.datatype, contents, self._service.turns)


def _parameters(message: Any) -> dict[str, Any]:
    return {
        name: getattr(value, which)
        for name, value in message.parameters.items()
        if (which := value.WhichOneof("parameter_choice")) is not None
    }
