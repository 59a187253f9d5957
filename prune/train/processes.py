"""One process or several: what torchrun's environment says, and what the trainer needs of it."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Processes", "joined"]


class Processes:
    """The group that this process trains in; alone without one.

    Attributes:
        rank: of this process, 0 for the one that writes.
        world: number of processes.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.world = dist.get_world_size() if grouped else 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.world > 1:
            import torch.distributed as dist

            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def agree(self, numbers: Sequence[int], device: torch.device) -> bool:
        """Whether every process gives the same numbers; the answer is the same in all of them."""
        import torch

        mine = torch.tensor([[n, n * n] for n in numbers], dtype=torch.float64, device=device)
        totals = self.sum(mine)
        return bool((totals[:, 1] * self.world == totals[:, 0] ** 2).all())  # no variance

    def wrapped(self, model: torch.nn.Module) -> torch.nn.Module:
        """The module whose gradients are averaged over the processes."""
        if self.world == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def joined() -> Processes:
    """The group that torchrun started, NCCL on GPUs and gloo elsewhere; without torchrun there is none.

    It is joined once and left at exit: processes that leave a group and join anew can find each other's old addresses
    in torchrun's store, and wait for ever.
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
