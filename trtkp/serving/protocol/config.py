"""A model's configuration as Triton's ``inference.ModelConfig`` message, for the protocol and for the Triton export."""

from __future__ import annotations

from typing import Any

from trtkp.serving.contract import Contract, TensorContract
from trtkp.serving.options import ServeOptions

__all__ = ["model_config"]


def model_config(
    contract: Contract, options: ServeOptions, *, platform: str = "", gpu: bool = False, usual: int | None = None
) -> Any:
    """Make the ``ModelConfig`` of a model: inputs, outputs, batching, instances, warm-up.

    Args:
        contract: inputs, outputs and batch limits.
        options: maximum delay, instances, queue length and time limit.
        platform: Triton's platform; empty for the contract's own.
        gpu: whether the instances run on a GPU.
        usual: the batch size the engine was planned for, which becomes a preferred size; None for the largest.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    batched = _is_batched(contract)
    config = pb.ModelConfig(name=contract.name, platform=platform or contract.platform)
    skip = int(batched)
    for tensors, entries in ((contract.inputs, config.input), (contract.outputs, config.output)):
        for tensor in tensors.values():
            entries.add(name=tensor.name, data_type=_data_type(tensor), dims=tensor.shape[skip:])
    kind = pb.ModelInstanceGroup.KIND_GPU if gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=options.instances, kind=kind)
    warm_up = config.model_warmup.add(name="zeros")
    for tensor in contract.inputs.values():
        warm_up.inputs[tensor.name].data_type = _data_type(tensor)
        warm_up.inputs[tensor.name].dims.extend(tensor.high[skip:])
        warm_up.inputs[tensor.name].zero_data = True
    if batched:
        assert contract.batch is not None
        config.max_batch_size = warm_up.batch_size = contract.batch[1]
        batching = config.dynamic_batching
        batching.max_queue_delay_microseconds = round(options.max_delay_ms * 1e3)
        batching.preferred_batch_size.extend(
            sorted({min(usual or contract.batch[1], contract.batch[1]), contract.batch[1]})
        )
        batching.default_queue_policy.max_queue_size = options.queue
        batching.default_queue_policy.default_timeout_microseconds = round(options.timeout_s * 1e6)
        batching.default_queue_policy.timeout_action = pb.ModelQueuePolicy.REJECT
    return config


def _is_batched(contract: Contract) -> bool:
    """Whether Triton can batch the model: its first dimension is dynamic and starts at 1, as Triton never pads."""
    leading = next(iter(contract.inputs.values())).dims[0] if contract.batch is not None else None
    return contract.batch is not None and contract.batch[0] == 1 and isinstance(leading, str)


def _data_type(tensor: TensorContract) -> int:
    from tritonclient.grpc import model_config_pb2 as pb

    return pb.DataType.Value(f"TYPE_{tensor.datatype}")
