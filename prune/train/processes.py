"""Training in one process or in several that torchrun started: what the trainer needs of `torch.distributed`."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Processes", "joined"]


class Processes:
    """The group of processes that train together. Without a group, this process alone.

    Attributes:
        rank: rank of this process; the one with rank 0 writes.
        world: number of processes.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.world = dist.get_world_size() if grouped else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of ``tensor`` over all processes, in all of them."""
        if self.world > 1:
            import torch.distributed as dist

            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def agree(self, numbers: Sequence[int], device: torch.device) -> bool:
        """Whether all processes pass the same numbers; the answer is the same in all of them."""
        import torch

        mine = torch.tensor([[n, n * n] for n in numbers], dtype=torch.float64, device=device)
        totals = self.sum(mine)
        # equal numbers have no variance: the mean of their squares is the square of their mean
        return bool((totals[:, 1] * self.world == totals[:, 0] ** 2).all())

    def wrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        """The module to call in training: with several processes it averages the gradients over them."""
        if self.world == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def joined() -> Processes:
    """Join the processes that torchrun started, through NCCL on GPUs and gloo elsewhere.

    A process joins once and leaves at exit. A process that leaves and joins again can find the others' old addresses in
    torchrun's store and wait for ever.
    """
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if gpu else "gloo")
        atexit.register(_leave)
    return Processes()


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
