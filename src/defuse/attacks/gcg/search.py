"""One search for one suffix, step by step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from defuse.attacks.gcg.candidates import Spelling, random_suffix, sample
from defuse.attacks.gcg.config import GCG
from defuse.attacks.gcg.score import Scorer
from defuse.attacks.notes import Notes
from defuse.utils.errors import UsageError
from defuse.utils.random import generator


@dataclass(frozen=True)
class Found:
    """A suffix, its loss in each problem, and the least of its leads."""

    suffix: tuple[int, ...]
    losses: tuple[float, ...]
    lead: float

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    @classmethod
    def of(cls, noted: dict[str, Any]) -> "Found":
        """From what `asdict` and JSON have made of one."""
        return cls(tuple(noted["suffix"]), tuple(noted["losses"]), noted["lead"])


@dataclass(frozen=True)
class Search:
    """A search's problems, how its suffixes are written, and which tokens (A,) they are of.

    `name` tells its draws from those of other searches; it begins with the suffix `start`.
    """

    name: str
    scorer: Scorer
    spelling: Spelling
    allowed: Tensor
    start: tuple[int, ...]
    config: GCG

    def run(self, notes: Notes) -> list[Found]:
        """The suffix of each step, from the one it begins with; each step is noted.

        It ends before `config.steps` once every lead is at least `config.margin`.
        """

        def noted(number: int, find: Callable[[], Found]) -> Found:
            return Found.of(notes.once(f"{self.name}/step {number}", lambda: asdict(find())))

        trace = [noted(0, self.begin)]
        buffer = (trace[0],)
        for number in range(1, self.config.steps + 1):
            if self.is_done(trace[-1]):
                break
            trace.append(noted(number, partial(self.step, buffer[0], number)))
            buffer = kept(buffer, trace[-1], self.config.buffer_size)
        return trace

    def best(self, trace: Sequence[Found]) -> Found:
        """The suffix that ended the search early, else that of lowest loss."""
        return trace[-1] if self.is_done(trace[-1]) else min(trace, key=lambda each: each.loss)

    def is_done(self, found: Found) -> bool:
        return self.config.margin is not None and found.lead >= self.config.margin

    def begin(self) -> Found:
        return _found(self.start, *self.scorer.judge(self.start, torch.tensor([self.start])))

    def step(self, parent: Found, number: int) -> Found:
        """The best of the sampled suffixes; the parent itself where none survives as text."""
        config = self.config
        candidates = sample(
            parent.suffix,
            self.scorer.gradient(parent.suffix, self.allowed),
            self.allowed,
            search_width=config.search_width,
            topk=config.topk,
            n_replace=config.n_replace,
            rng=generator(config.seed, "gcg", self.name, number),
        )
        candidates = self.spelling.survivors(candidates)
        if not len(candidates):
            return parent
        losses, leads = self.scorer.judge(parent.suffix, candidates)
        for index in losses.mean(dim=0).argsort(stable=True).tolist():
            suffix = tuple(candidates[index].tolist())
            # Only the best is looked for in all whole prompts: the sieve lets few false ones pass.
            if self.spelling.stands(suffix):
                return _found(suffix, losses[:, [index]], leads[:, [index]])
        return parent


def kept(buffer: tuple[Found, ...], newest: Found, size: int) -> tuple[Found, ...]:
    """The `size` best of all so far, the best first; with size 0 the newest alone."""
    if size == 0:
        return (newest,)
    if newest in buffer:
        return buffer
    return tuple(sorted([*buffer, newest], key=lambda found: found.loss)[:size])


def first_suffix(config: GCG, spelling: Spelling, allowed: Tensor, name: str) -> tuple[int, ...]:
    """The suffix a search begins with. Raises UsageError unless it survives as text."""
    if not config.init:
        rng = generator(config.seed, "gcg", name, "init")
        return random_suffix(spelling, allowed, config.length, rng)
    ids = spelling.places[0].between(f" {config.init}" * config.length, spelling.tokenizer) or ()
    is_whole = len(ids) == config.length and set(ids) <= set(allowed.tolist())
    if not is_whole or not spelling.stands(ids):
        raise UsageError(
            f"gcg.init: {config.init!r} is no single token of this tokenizer that a suffix may be "
            "made of; name another word, or '' to begin with random tokens"
        )
    return ids


def _found(suffix: tuple[int, ...], losses: Tensor, leads: Tensor) -> Found:
    return Found(suffix, tuple(losses[:, 0].tolist()), float(leads.min()))
