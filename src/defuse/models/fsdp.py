"""Frozen blocks spread over the processes, for models beyond one GPU (experimental).

It uses PyTorch's FSDP2 and is tested on CPU processes, not yet on several GPUs. FSDP's hooks are on
the blocks, which the training step calls one by one. Every process holds the trained tensors in
full: they are few, and they are swapped in.
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
    """Raise UsageError if blocks cannot be spread over `processes`.

    All processes gather a block when one of them runs it, so each needs a text.
    """
    if processes.count == 1:
        raise UsageError(
            "shard: needs several processes; start with accelerate launch, or leave out"
        )
    if batch_size < processes.count:
        raise UsageError(
            f"batch_size: {batch_size} leaves some of {processes.count} processes without a text, "
            "but shard needs one each; raise it, or start fewer processes"
        )


def shard_blocks(
    decoder: Decoder, trained: Iterable[nn.Parameter], processes: Processes, device: torch.device
) -> None:
    """Keep this process's share of every block on `device`, and all other tensors in full."""
    mesh = init_device_mesh(device.type, (processes.count,))
    whole = set(trained)
    for block in decoder.blocks:
        own = whole & set(block.parameters())
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=own)
    decoder.model.to(device)  # type: ignore[arg-type] (a device is one of its overloads)
