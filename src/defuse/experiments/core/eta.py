"""How long it will take, from the work left and the pace so far."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from defuse.methods import HiddenMSE
from defuse.unlearning.defaults import strength_field

PROBE_SHAPE = (4, 64)  # texts and tokens, as in a step
EVERY_SECONDS = 5.0
# Forward passes' worth of a text's forward and backward passes: up to the steered layer, to the
# top, and to the top with the reference's pass beside it.
SHALLOW, DEEP, DEEP_TWICE = 0.25, 3.5, 4.5


def tokens_per_second(model: PreTrainedModel, threads: int | None = None) -> float:
    """How many tokens pass forward through the model in a second (the better of two tries).

    `threads` of the processor; None takes those that torch has.
    """
    ids = torch.ones(PROBE_SHAPE, dtype=torch.long, device=model.device)
    seconds = []
    with torch.inference_mode(), _threads(threads or torch.get_num_threads()):
        for _ in range(2):
            began = time.perf_counter()
            model(ids, logits_to_keep=1).logits.sum().item()
            seconds.append(time.perf_counter() - began)
    return ids.numel() / min(seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step_work(method: str, retain: str, forget_tokens: int, retain_tokens: int) -> float:
    """A step of unlearning in tokens pushed once through the whole model, about."""
    steers = strength_field(method) is not None
    stops = retain == HiddenMSE.name
    forget = forget_tokens * (SHALLOW if steers else DEEP)
    return forget + retain_tokens * (SHALLOW if stops else DEEP_TWICE)


@dataclass
class Clock:
    """Work counted in tokens pushed once through the model; `pace`: a first guess per second."""

    total: float
    pace: float
    done: float = 0.0
    began: float = field(default_factory=time.monotonic)
    last_said: float = 0.0

    def tick(self, what: str, work: float) -> None:
        """Count finished work, and say so every few seconds."""
        self.done += work
        now = time.monotonic()
        if now - self.last_said >= EVERY_SECONDS:
            self.last_said = now
            print(f"{what}; {self.left()} left", file=sys.stderr, flush=True)

    def left(self) -> str:
        """The time left in words: by the first guess, later more and more by the pace so far."""
        elapsed = time.monotonic() - self.began
        # The guess counts as a minute of experience.
        pace = (self.done + 60 * self.pace) / (elapsed + 60)
        return spoken((self.total - self.done) / pace)


def spoken(seconds: float) -> str:
    """A duration as one would say it."""
    if seconds < 90:
        return f"about {max(0, round(seconds / 10)) * 10} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
