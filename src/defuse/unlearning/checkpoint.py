"""The state of a run on disk, from which it resumes after a kill.

All random draws come from (seed, purpose, step, item), so the number of steps done also gives the
position in the data and in every generator. The rest are the trained tensors and AdamW's moments.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defuse.utils.errors import UsageError
from defuse.utils.files import new_path

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class SavedState:
    """One file, replaced after every `every` steps (0: never).

    `identity`: a hash of all that the run's result depends on; another run's state is refused.
    """

    path: Path
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
        """Replace the file. Raises UsageError if it cannot be written; the old one is then kept."""
        tensors = {f"weight/{name}": tensor.detach() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            state = optimiser.state[tensor]
            tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS}
        about = {"identity": self.identity, "records": json.dumps(records)}
        try:
            with new_path(self.path) as temporary:
                save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, about)
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"output: the state after {len(records)} steps cannot be written to "
                f"{self.path.parent} ({error}); make room and run the same command again: it "
                "resumes from the previous state, which is intact"
            ) from error

    def restore(
        self, weights: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
    ) -> list[dict[str, Any]]:
        """Load the saved state, if there is one, into `weights` and `optimiser`.

        Returns the records of the steps that are done. Raises UsageError for the state of another
        run, and for a file that is no state.
        """
        if not self.path.exists():
            return []
        records, saved = self._read()
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

    def _read(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            identity, records = about["identity"], json.loads(about["records"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UsageError(
                f"output: {self.path} is no state of a run ({error}); remove it to start again"
            ) from error
        if identity != self.identity:
            raise UsageError(
                f"output: {self.path.parent} holds the beginning of a run with another recipe, "
                "other texts or another model; remove it, or name a new output"
            )
        return records, tensors
