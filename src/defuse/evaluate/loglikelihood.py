"""Log-probabilities of continuations, each shared token computed once.

Equal to `HFLM.loglikelihood` of lm-evaluation-harness 0.4.13 in encoding, in truncation on the
left and in the numbers, which come from one forward pass per batch of token trees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.evaluate.resume import Ledger, Scores
from defuse.evaluate.token_tree import (
    Request,
    TokenTree,
    TreeBatch,
    collate,
    common_length,
    grow,
    visibility,
)
from defuse.models.decoder import Decoder
from defuse.models.freeze import evaluation_mode
from defuse.models.kv_cache import PrefixCache
from defuse.models.lm_head import chunks
from defuse.utils.errors import UsageError

# Tokens of a batch: enough to keep the processor busy, few enough to stay in its cache.
TOKEN_BUDGET = {"cpu": 512}
DEVICE_TOKEN_BUDGET = 16384
LM_EVAL_MAX_LENGTH = 2048

OnScored = Callable[[int], None]


def max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the model reads at once, found as lm-eval does."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        length = getattr(model.config, name, None)
        if length is not None:
            return int(length)
    length = tokenizer.model_max_length
    return LM_EVAL_MAX_LENGTH if length > 10**9 else int(length)


def score(
    decoder: Decoder,
    groups: Sequence[Sequence[Request]],
    *,
    max_length: int,
    token_budget: int | None = None,
    on_scored: OnScored = lambda _: None,
    ledger: Ledger | None = None,
    name: str = "groups",
) -> list[list[float]]:
    """Summed log-probability (nats) of each request's continuation, grouped as `groups` are.

    A group makes one row, so requests that begin alike belong in one. What all groups begin with
    is computed once. `on_scored` is told how many groups each batch has finished. With a `ledger`,
    what it has under `name` is not scored again, and processes share the rest. Raises UsageError
    for a continuation longer than `max_length` tokens and for figures that are not finite.
    """
    ledger = ledger or Ledger()
    score_share(
        decoder,
        groups,
        ledger,
        name,
        max_length=max_length,
        token_budget=token_budget,
        on_scored=on_scored,
    )
    ledger.exchange()
    return ledger.scores(name)


@torch.no_grad()
def score_share(
    decoder: Decoder,
    groups: Sequence[Sequence[Request]],
    ledger: Ledger,
    name: str,
    *,
    max_length: int,
    token_budget: int | None = None,
    on_scored: OnScored = lambda _: None,
) -> None:
    """As `score`, but only what `ledger` has not yet under `name` and deals to this process.

    Batches depend on the groups alone: who scores them, and when, changes no digit. What is known
    or another process's share counts for `on_scored`, too.
    """
    _refuse_long(groups, max_length)
    # Groups cut on the left begin elsewhere: they must not keep the others from their prefix.
    cut = [any(request.is_cut(max_length) for request in group) for group in groups]
    budget = token_budget or TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    with evaluation_mode(decoder.model):
        for kind in (False, True):
            alike = {i: groups[i] for i, is_cut in enumerate(cut) if is_cut == kind}
            told = 0
            for scores, finished in _score_alike(decoder, alike, ledger, name, max_length, budget):
                ledger.add(name, scores)
                on_scored(finished - told)
                told = finished
            if told < len(alike):
                on_scored(len(alike) - told)


def _score_alike(
    decoder: Decoder,
    groups: Mapping[int, Sequence[Request]],
    ledger: Ledger,
    name: str,
    max_length: int,
    budget: int,
) -> Iterator[tuple[Scores, int]]:
    """This process's batches of `groups`, each with how many groups are finished by then."""
    if not groups:
        return
    shared = _shared_prefix(list(groups.values()), max_length) if len(groups) > 1 else ()
    trees = {i: grow(group, len(shared), max_length) for i, group in groups.items()}
    batches = list(batches_by_length({i: len(tree.tokens) for i, tree in trees.items()}, budget))
    undone = ledger.undone(name, batches)
    known = len(groups) - sum(map(len, undone))
    prefix = None
    for batch, finished in ledger.turns(undone):
        if shared and prefix is None:
            prefix = PrefixCache.of(decoder, torch.tensor([shared], device=decoder.device))
        values = iter(_score_batch(decoder, [trees[i] for i in batch], prefix))
        yield {i: [next(values) for _ in trees[i].targets] for i in batch}, known + finished


def _shared_prefix(groups: Sequence[Sequence[Request]], max_length: int) -> tuple[int, ...]:
    """The longest beginning common to all inputs that comes before all that is predicted."""
    requests = list(chain.from_iterable(groups))
    inputs = [request.inputs(max_length) for request in requests]
    # What the first and the last in lexicographic order share, all between them share.
    shared = common_length(min(inputs), max(inputs))
    predicting = min(
        len(ids) - len(r.continuation) for ids, r in zip(inputs, requests, strict=True)
    )
    return inputs[0][: min(shared, predicting)]


def batches_by_length(lengths: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """Indices by falling length, in batches of at most `budget` tokens with padding (or one)."""
    batch: list[int] = []
    for index in sorted(lengths, key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _score_batch(
    decoder: Decoder, trees: Sequence[TokenTree], prefix: PrefixCache | None
) -> list[float]:
    batch = collate(trees, decoder.device)
    length = 0 if prefix is None else prefix.length
    visible = visibility(batch.last, length)
    hidden, inputs = decoder.embed_tree(batch.input_ids, batch.depths + length, visible, prefix)
    hidden = decoder.run(hidden, inputs, 0, decoder.num_layers, cache=prefix)
    values = read_off(decoder, hidden, batch)
    _refuse_not_finite(decoder, values)
    return values.tolist()


def read_off(decoder: Decoder, hidden: Tensor, batch: TreeBatch) -> Tensor:
    """Each request's summed log-probability (nats), (requests,) in float64 on the CPU.

    `hidden` (batch, time, d) goes through the final norm and the head, whichever block it is of.
    """
    nodes, pair_nodes = batch.nodes.unique(return_inverse=True)
    values = _logprobs(decoder, hidden.flatten(0, 1)[nodes], pair_nodes, batch.targets).cpu()
    sums = torch.zeros(int(batch.owners[-1]) + 1, dtype=torch.float64)
    return sums.index_add(0, batch.owners.cpu(), values.double())


def _logprobs(decoder: Decoder, hidden: Tensor, nodes: Tensor, targets: Tensor) -> Tensor:
    """log p(targets[k]) at hidden[nodes[k]]: hidden (N, d), nodes and targets (K,), to (K,)."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    values = torch.empty(len(nodes), dtype=exact, device=hidden.device)
    for some in chunks(len(hidden), decoder.vocab_size):
        logits = decoder.logits(hidden[some]).to(exact)
        pairs = ((nodes >= some.start) & (nodes < some.stop)).nonzero()[:, 0]
        rows = nodes[pairs] - some.start
        values[pairs] = logits[rows, targets[pairs]] - logits.logsumexp(dim=-1)[rows]
    return values


def _refuse_long(groups: Sequence[Sequence[Request]], max_length: int) -> None:
    longest = max((len(r.continuation) for group in groups for r in group), default=0)
    if longest > max_length:
        raise UsageError(
            f"questions: an answer is {longest} tokens long and the model reads {max_length}; "
            "shorten it or leave the question out"
        )


def _refuse_not_finite(decoder: Decoder, values: Tensor) -> None:
    if not values.isfinite().all():
        config = decoder.model.config
        raise UsageError(
            f"model: {config.name_or_path or config.model_type} gives log-probabilities that are "
            "not finite; try --dtype float32, or check its weights"
        )
