"""Experimental: the frozen blocks spread over the processes, for models beyond one GPU.

PyTorch's FSDP2, tested on CPU processes, not yet run on several GPUs. FSDP's hooks sit on the
blocks themselves, which the engine calls one by one. The trained tensors stay whole on every
process: they are few, and they are swapped in.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from defuse.models.decoder import Decoder
from defuse.utils.distributed import Processes
from defuse.utils.errors import UsageError


def check_sharding(processes: Processes, batch_size: int) -> None:
    """Raise UsageError where blocks cannot be spread over `processes`.

    Every process gathers a block whenever one runs it, so none may be without a text.
    """
    if processes.count == 1:
        raise UsageError(
            "shard: needs several processes; start with accelerate launch, or leave out"
        )
    if batch_size < processes.count:
        raise UsageError(
            f"batch_size: {batch_size} leaves some of {processes.count} processes without a text, "
            "which shard cannot have; raise it, or start fewer processes"
        )


def shard_blocks(
    decoder: Decoder, trained: Iterable[nn.Parameter], processes: Processes, device: torch.device
) -> None:
    """Keep on `device` this process's share of every block, and all else whole."""
    mesh = init_device_mesh(device.type, (processes.count,))
    whole = set(trained)
    for block in decoder.blocks:
        own = whole & set(block.parameters())
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=own)
    decoder.model.to(device)  # type: ignore[arg-type] (a device is one of its overloads)
