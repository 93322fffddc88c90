"""The search for one suffix, step by step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from defuse.attacks.findings import Findings
from defuse.attacks.gcg.candidates import Spelling, random_suffix, sample
from defuse.attacks.gcg.config import GCG
from defuse.attacks.gcg.score import Scorer
from defuse.utils.errors import UsageError
from defuse.utils.random import generator


@dataclass(frozen=True)
class Found:
    """A suffix, its loss in each problem, and the smallest of its leads."""

    suffix: tuple[int, ...]
    losses: tuple[float, ...]
    lead: float

    @property
    def loss(self) -> float:
        """The mean loss."""
        return sum(self.losses) / len(self.losses)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values: a lead of -inf, which never ends a search, is null."""
        return {**asdict(self), "lead": self.lead if isfinite(self.lead) else None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Found":
        """Read what `as_json` returned."""
        lead = -inf if value["lead"] is None else value["lead"]
        return cls(tuple(value["suffix"]), tuple(value["losses"]), lead)


@dataclass(frozen=True)
class Search:
    """A search from the suffix `start`: its problems, the spelling of suffixes, and the tokens (A,)
    they may consist of. `name` distinguishes its random draws from those of other searches."""

    name: str
    scorer: Scorer
    spelling: Spelling
    allowed: Tensor
    start: tuple[int, ...]
    config: GCG

    def run(self, findings: Findings) -> list[Found]:
        """Return the suffix of each step, after the first one; each step is a finding.

        The search ends before `config.steps` once every lead is at least `config.margin`.
        """

        def found(number: int, find: Callable[[], Found]) -> Found:
            name = f"{self.name}/step {number}"
            return Found.from_json(findings.get_or_compute(name, lambda: find().as_json()))

        trace = [found(0, self.begin)]
        buffer = (trace[0],)
        for number in range(1, self.config.steps + 1):
            if self.is_done(trace[-1]):
                findings.skip(self.config.steps + 1 - number)
                break
            trace.append(found(number, partial(self.step, buffer[0], number)))
            buffer = kept(buffer, trace[-1], self.config.buffer_size)
        return trace

    def best(self, trace: Sequence[Found]) -> Found:
        """Return the suffix that ended the search early, or else the one of lowest loss."""
        return trace[-1] if self.is_done(trace[-1]) else min(trace, key=lambda each: each.loss)

    def is_done(self, found: Found) -> bool:
        """Whether the search ends with this suffix."""
        return self.config.margin is not None and found.lead >= self.config.margin

    def begin(self) -> Found:
        """Score the first suffix."""
        return _found(self.start, *self.scorer.judge(self.start, torch.tensor([self.start])))

    def step(self, parent: Found, number: int) -> Found:
        """Return the best of the sampled suffixes, or the parent if none survives as text."""
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
            # Only the best is checked in all whole prompts: the filter lets few others pass.
            if self.spelling.survives(suffix):
                return _found(suffix, losses[:, [index]], leads[:, [index]])
        return parent


def kept(buffer: tuple[Found, ...], newest: Found, size: int) -> tuple[Found, ...]:
    """Return the `size` best suffixes so far, the best first; with size 0 the newest alone."""
    if size == 0:
        return (newest,)
    if newest in buffer:
        return buffer
    return tuple(sorted([*buffer, newest], key=lambda found: found.loss)[:size])


def first_suffix(config: GCG, spelling: Spelling, allowed: Tensor, name: str) -> tuple[int, ...]:
    """Return the suffix a search starts from. Raises UsageError unless it survives as text."""
    if not config.init:
        rng = generator(config.seed, "gcg", name, "init")
        return random_suffix(spelling, allowed, config.length, rng)
    ids = spelling.places[0].between(f" {config.init}" * config.length, spelling.tokenizer) or ()
    is_whole = len(ids) == config.length and set(ids) <= set(allowed.tolist())
    if not is_whole or not spelling.survives(ids):
        raise UsageError(
            f"gcg.init: {config.init!r} is no single token of this tokenizer that a suffix may "
            "consist of; name another word, or '' to start from random tokens"
        )
    return ids


def _found(suffix: tuple[int, ...], losses: Tensor, leads: Tensor) -> Found:
    return Found(suffix, tuple(losses[:, 0].tolist()), float(leads.min()))
