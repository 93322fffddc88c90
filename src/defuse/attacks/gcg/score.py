"""Losses of suffixes, and the gradient of the loss with respect to their tokens.

The common beginning of all prompts is run once in a search. The rest before a suffix, and the
suffix that is improved, are run once in a step, and a candidate from its first new token on.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from defuse.attacks.gcg.config import Aim
from defuse.evaluate.loglikelihood import DEVICE_TOKEN_BUDGET, TOKEN_BUDGET
from defuse.evaluate.token_tree import common_length
from defuse.models.decoder import BlockInputs, Decoder
from defuse.models.kv_cache import PrefixCache, last_states
from defuse.models.lm_head import chunks

# Multiples of a batch's tokens: keys that it may attend to; and the part that keeps a device busy.
KEYS, BUSY = 16, 8


class Target(Protocol):
    """What is to follow a prompt.

    `read`: tokens that the model reads after the prompt. `judge` receives the logits there and at
    the prompt's last token, (rows, 1 + len(read), vocabulary) in float32 or better. It returns
    losses (nats) and leads, by how many nats the model does what is wanted (both (rows,)).
    """

    @property
    def read(self) -> tuple[int, ...]: ...

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class LetterTarget:
    """The log-probability of the right letter among the letters, lowered ("break") or raised
    ("recover"). The lead is that of the best wrong letter over the right one, or the reverse."""

    letters: tuple[int, ...]
    answer: int
    aim: Aim
    read: tuple[int, ...] = ()

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = logits[:, 0, list(self.letters)].log_softmax(dim=-1)
        right = logprobs[:, self.answer]
        wrong = logprobs[:, [i for i in range(len(self.letters)) if i != self.answer]].amax(dim=-1)
        return (right, wrong - right) if self.aim == "break" else (-right, right - wrong)


@dataclass(frozen=True)
class TextTarget:
    """A continuation's mean cross-entropy over its tokens (eq. 2 of 2307.15043, as in nanoGCG).

    The lead is that of its weakest token over the best other token.
    """

    ids: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        return self.ids[:-1]

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        ids = torch.tensor(self.ids, device=logits.device).expand(len(logits), -1)[..., None]
        wanted = logits.gather(-1, ids)[..., 0]
        others = logits.scatter(-1, ids, -torch.inf).amax(dim=-1)
        loss = (logits.logsumexp(dim=-1) - wanted).mean(dim=-1)
        return loss, (wanted - others).amin(dim=-1)


@dataclass(frozen=True)
class AnswerTarget:
    """The mean log-probability of the right answer's own tokens, lowered or raised.

    It is for cloze scoring. The other choices are not scored, so its lead never ends a search.
    """

    ids: tuple[int, ...]
    aim: Aim

    @property
    def read(self) -> tuple[int, ...]:
        return self.ids[:-1]

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        loss, _ = TextTarget(self.ids).judge(logits)
        return -loss if self.aim == "break" else loss, torch.full_like(loss, -torch.inf)


@dataclass(frozen=True)
class Problem:
    """A prompt whose suffix is between `before`, which is not empty, and `after` (token ids)."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    target: Target


@dataclass
class Budget:
    """The tokens of a batch; halved, for good, whenever memory runs out."""

    tokens: int

    @classmethod
    def of(cls, device: torch.device, tokens: int | None = None) -> "Budget":
        """A budget of `tokens`, or what suits the device."""
        return cls(tokens or TOKEN_BUDGET.get(device.type, DEVICE_TOKEN_BUDGET))

    def rows(self, begins: Sequence[int], length: int, prefix: int) -> int:
        """Return the number of rows of the next batch.

        Rows have `length` tokens, of which those from `begins` on (sorted) are run after `prefix`
        tokens, whose keys every row has a copy of. A batch that is large enough to keep the device
        busy ends before rows that begin later, since it would run what these have in common.
        """
        time = length - begins[0]
        most = min(self.tokens // time, KEYS * self.tokens // (prefix + time))
        alike = bisect_right(begins, begins[0])
        busy = -(-self.tokens // (BUSY * time))
        return max(1, min(len(begins), most, max(alike, busy)))

    def shrink(self, begins: Sequence[int], length: int, prefix: int) -> None:
        """Shrink the budget until a batch that did not fit is at most half as large."""
        half = self.rows(begins, length, prefix) // 2
        while self.rows(begins, length, prefix) > half:
            self.tokens //= 2


class Scorer:
    """Losses and gradients over one or more problems, for a model whose parameters are frozen."""

    def __init__(self, decoder: Decoder, problems: Sequence[Problem], budget: Budget) -> None:
        self.decoder = decoder
        self.problems = problems
        self.budget = budget

    @cached_property
    def shared(self) -> PrefixCache:
        """Keys and values of the common beginning of all problems, kept for the whole search.

        The rest of a problem before its suffix is run again when it is needed. It is short compared
        with the candidates; kept for every problem, it would fill the memory.
        """
        first, *others = [each.before for each in self.problems]
        length = min((common_length(first, other) for other in others), default=len(first))
        ids = self._row(first[:length])
        return PrefixCache.of(self.decoder, ids) if length else PrefixCache()

    def _known(self, problem: Problem, suffix: Sequence[int] = ()) -> PrefixCache:
        """Keys and values of everything before a problem's suffix, and of the given suffix."""
        own = (*problem.before[self.shared.length :], *suffix)
        return self.shared.extended(self.decoder, self._row(own)) if own else self.shared

    def gradient(self, suffix: Sequence[int], tokens: Tensor) -> Tensor:
        """The gradient of the mean loss with respect to the suffix's one-hot matrix, (length, A).

        Its columns are those of `tokens` (A,); others are never computed.
        """
        tokens = tokens.to(self.decoder.device)
        gradients = [self._gradient(problem, suffix) for problem in self.problems]
        gradient = torch.stack(gradients).mean(dim=0)
        slices = chunks(len(tokens), self.decoder.hidden_size)
        with torch.no_grad():
            parts = [gradient @ self.decoder.vectors(tokens[some]).T for some in slices]
        return torch.cat(parts, dim=1)

    def _gradient(self, problem: Problem, suffix: Sequence[int]) -> Tensor:
        """The gradient of the loss with respect to the vectors of the suffix's tokens."""
        prefix = self._known(problem)
        ids = self._row([*suffix, *problem.after, *problem.target.read])
        hidden, inputs = self.decoder.embed_behind(ids, prefix)
        vectors, rest = hidden.detach().split([len(suffix), ids.shape[1] - len(suffix)], dim=1)
        with torch.enable_grad():
            vectors = vectors.clone().requires_grad_()
            hidden = torch.cat([vectors, rest], dim=1)
            losses, _ = self._read(problem.target, hidden, inputs, prefix)
            (gradient,) = torch.autograd.grad(losses.sum(), vectors)
        return gradient[0]

    @torch.no_grad()
    def judge(self, parent: Sequence[int], candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and leads of `candidates` (C, length) in each problem: float64 (problems, C).

        The tokens that a candidate shares with `parent` at its beginning are not run again.
        """
        ids = self._row(parent)
        begins = (candidates.to(ids.device) != ids).int().argmax(dim=1)
        order = begins.argsort(stable=True)
        judged = torch.empty(2, len(self.problems), len(candidates), dtype=torch.float64)
        for row, problem in enumerate(self.problems):
            known = self._known(problem, parent)
            rest = self._row([*problem.after, *problem.target.read]).expand(len(candidates), -1)
            rows = torch.cat([candidates.to(ids.device)[order], rest], dim=1)
            values = self._judge(problem.target, rows, begins[order].tolist(), known, len(parent))
            judged[:, row, order.cpu()] = values.cpu().double()
        return judged[0], judged[1]

    def _judge(
        self, target: Target, rows: Tensor, begins: list[int], known: PrefixCache, length: int
    ) -> Tensor:
        """Losses and leads, (2, rows), of rows sorted by their first new token."""
        values, done = [], 0
        while done < len(rows):
            begin = begins[done]
            prefix = known.first(known.length - length + begin)
            count = self.budget.rows(begins[done:], rows.shape[1], prefix.length)
            try:
                some = rows[done : done + count, begin:]
                values.append(self._judge_batch(target, some, prefix))
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                self.budget.shrink(begins[done:], rows.shape[1], prefix.length)
            else:
                done += count
        return torch.cat(values, dim=1)

    def _judge_batch(self, target: Target, rows: Tensor, prefix: PrefixCache) -> Tensor:
        hidden, inputs = self.decoder.embed_behind(rows, prefix)
        return torch.stack(self._read(target, hidden, inputs, prefix))

    def _read(
        self, target: Target, hidden: Tensor, inputs: BlockInputs, prefix: PrefixCache
    ) -> tuple[Tensor, Tensor]:
        """Losses and leads of embedded rows, a few rows of logits at a time."""
        last = last_states(self.decoder, hidden, inputs, prefix, 1 + len(target.read))
        exact = torch.promote_types(hidden.dtype, torch.float32)
        slices = chunks(len(last), self.decoder.vocab_size * last.shape[1])
        judged = [target.judge(self.decoder.logits(last[some]).to(exact)) for some in slices]
        losses, leads = zip(*judged, strict=True)
        return torch.cat(losses), torch.cat(leads)

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self.decoder.device)
