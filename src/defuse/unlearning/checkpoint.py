"""The state of a run on disk, from which it resumes after a kill.

All random draws come from (seed, purpose, step, item), so the number of steps done also gives the
position in the data and in every generator. The rest are the trained tensors and AdamW's moments.
The two latest states are kept: a damaged one is noticed by its checksum, and the run then resumes
from the other.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defuse.utils.errors import UsageError, caution
from defuse.utils.files import new_path
from defuse.utils.json_text import parse_json

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE, PREVIOUS_STATE = "state.safetensors", "state.previous.safetensors"
State = tuple[list[dict[str, Any]], dict[str, Tensor]]  # the steps' records, and tensors by name


class _DamagedError(Exception):
    """A file that is no whole state."""


@dataclass(frozen=True)
class SavedState:
    """Two files in `folder`, the older of which is replaced after every `every` steps (0: never).

    `identity`: all that the run's result depends on; another run's state is refused.
    """

    folder: Path
    every: int
    identity: str

    def is_due(self, steps: int) -> bool:
        return self.every > 0 and steps % self.every == 0

    def save(
        self,
        weights: Mapping[str, Tensor],
        optimiser: torch.optim.Optimizer,
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write a state. Raises UsageError if it cannot be written; older ones are then kept."""
        tensors = {f"weight/{name}": tensor.detach() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            state = optimiser.state[tensor]
            tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about = {"identity": self.identity, "records": json.dumps(records)}
        about["checksum"] = _checksum(tensors, about)
        path = self.folder / STATE
        try:
            with new_path(path) as temporary:
                save_file(tensors, temporary, about)
                if path.exists():
                    path.replace(self.folder / PREVIOUS_STATE)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"output: the state after {len(records)} steps cannot be written to "
                f"{self.folder} ({error}); make room and run the same command again: it "
                "resumes from the previous state, which is intact"
            ) from error

    def restore(
        self, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
    ) -> list[dict[str, Any]]:
        """Load the latest whole state, if there is one, into `weights` and `optimiser`.

        Returns the records of the steps that are done. Raises UsageError for the state of another
        run, and where no state is whole.
        """
        found = self._latest(weights)
        if found is None:
            return []
        records, saved = found
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(saved[f"weight/{name}"])
        step = torch.tensor(float(len(records)))
        state = {
            place: {"step": step.clone(), **{m: saved[f"{m}/{name}"] for m in MOMENTS}}
            for place, name in enumerate(weights)
        }
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})
        return records

    def _latest(self, weights: Mapping[str, Tensor]) -> State | None:
        paths = [self.folder / name for name in (STATE, PREVIOUS_STATE)]
        damage: list[str] = []
        for path in paths:
            if not path.exists():
                continue
            try:
                state = self._read(path, weights)
            except _DamagedError as error:
                damage.append(f"{path} is damaged, or no state of a run ({error})")
                continue
            for sentence in damage:
                caution(f"{sentence}; the run resumes from the state before it")
            return state
        if damage:
            raise UsageError(f"output: {damage[0]}; remove {self.folder} to start again")
        return None

    def _read(self, path: Path, weights: Mapping[str, Tensor]) -> State:
        try:
            with safe_open(path, framework="pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = about.pop("checksum", None)
            identity, records = about["identity"], parse_json(about["records"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise _DamagedError(str(error)) from error
        if identity != self.identity:
            raise UsageError(
                f"output: {self.folder} holds the beginning of a run with another recipe, "
                "other texts or another model, or of another version; remove it, or name a new "
                "output"
            )
        if checksum != _checksum(tensors, about):
            raise _DamagedError("its checksum differs")
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        wanted = {f"{kind}/{n}": s for kind in ("weight", *MOMENTS) for n, s in shapes.items()}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
            raise _DamagedError("its tensors are not those that the recipe trains")
        return records, tensors


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """A checksum (CRC-32) of all names, values and texts."""
    total = zlib.crc32(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(values.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"
