"""One process or many: each does its part of the work, and the results are the same.

`accelerate launch` (or torchrun) starts a command once per process. No result depends on how many
there are: random numbers come from (seed, purpose, step, item), and sums run over all processes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's number among `count`; alone unless a launcher started more."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`: every `count`-th."""
        return items[self.rank :: self.count]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor its sum over all processes, which must call this alike."""
        if self.count == 1 or not tensors:
            return
        # One message instead of one for each tensor.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """The values of all processes (anything that pickles), in the order of their numbers."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def wait(self) -> None:
        """Go on only when every process has come here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Processes()


def join_processes(device: torch.device) -> Processes:
    """This process's place among those that a launcher started; alone where none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes)
