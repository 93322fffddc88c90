"""Log-probabilities of continuations, with each shared token computed once.

Encoding, truncation on the left and numbers are those of `HFLM.loglikelihood` of
lm-evaluation-harness 0.4.13. One forward pass scores a batch of token trees.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.evaluate.resume import BatchScores, Scores
from defuse.evaluate.token_tree import (
    TokenPair,
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
from defuse.utils.progress import SILENT, Progress

# Tokens of a batch: enough to keep the processor busy, few enough to stay in its cache.
TOKEN_BUDGET = {"cpu": 512}
DEVICE_TOKEN_BUDGET = 16384
LM_EVAL_MAX_LENGTH = 2048


def max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens that the model reads at once, determined as lm-eval does."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        length = getattr(model.config, name, None)
        if length is not None:
            return int(length)
    length = tokenizer.model_max_length
    return LM_EVAL_MAX_LENGTH if length > 10**9 else int(length)


def score(
    decoder: Decoder,
    groups: Sequence[Sequence[TokenPair]],
    *,
    max_length: int,
    token_budget: int | None = None,
    progress: Progress = SILENT,
    scores: BatchScores | None = None,
    name: str = "groups",
) -> list[list[float]]:
    """Summed log-probability (nats) of each pair's continuation, grouped as `groups` are.

    A group makes one row, so pairs with a common beginning belong in one group. The prefix that
    all groups share is computed once. `progress` advances by the groups of each batch; the caller
    starts its stage. `scores` holds the list under `name`: batches that it knows are not computed
    again, and its processes share the others. Raises UsageError for a continuation of more than
    `max_length` tokens and for log-probabilities that are not finite.
    """
    scores = scores or BatchScores()
    score_share(
        decoder,
        groups,
        scores,
        name,
        max_length=max_length,
        token_budget=token_budget,
        progress=progress,
    )
    scores.exchange()
    return scores.of(name)


@torch.no_grad()
def score_share(
    decoder: Decoder,
    groups: Sequence[Sequence[TokenPair]],
    scores: BatchScores,
    name: str,
    *,
    max_length: int,
    token_budget: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Score the batches that `scores` does not know and deals to this process, as `score` does.

    Batches depend on the groups alone, so it changes no digit which process computes them, or when.
    `progress` also advances by the known groups and by those of other processes.
    """
    _refuse_long(groups, max_length)
    _refuse_unknown(groups, decoder.num_embeddings)
    kinds = [_kind(decoder, group, max_length) for group in groups]
    budget = token_budget or TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    with evaluation_mode(decoder.model):
        for kind in sorted(set(kinds)):
            alike = {i: groups[i] for i, own in enumerate(kinds) if own == kind}
            reported = 0
            for batch, finished in _score_alike(decoder, alike, scores, name, max_length, budget):
                scores.add(name, batch)
                progress.advance(finished - reported)
                reported = finished
            if reported < len(alike):
                progress.advance(len(alike) - reported)


def _score_alike(
    decoder: Decoder,
    groups: Mapping[int, Sequence[TokenPair]],
    scores: BatchScores,
    name: str,
    max_length: int,
    budget: int,
) -> Iterator[tuple[Scores, int]]:
    """This process's batches of `groups`, each with the number of groups finished by then."""
    lengths = _lengths(decoder, next(iter(groups.values())), max_length)
    may_share = len(groups) > 1 and len(lengths) == 1
    shared = _shared_prefix(list(groups.values()), max_length) if may_share else ()
    classes = decoder.length_classes
    trees = {i: grow(group, len(shared), max_length, classes) for i, group in groups.items()}
    batches = list(batches_by_length({i: len(tree.tokens) for i, tree in trees.items()}, budget))
    missing = scores.missing(name, batches)
    known = len(groups) - sum(map(len, missing))
    prefix = None
    for batch, finished in scores.share(missing):
        if shared and prefix is None:
            ids = torch.tensor([shared], device=decoder.device)
            prefix = PrefixCache.of(decoder, ids, lengths[0])
        values = iter(_score_batch(decoder, [trees[i] for i in batch], prefix))
        yield {i: [next(values) for _ in trees[i].targets] for i in batch}, known + finished


def _kind(
    decoder: Decoder, group: Sequence[TokenPair], max_length: int
) -> tuple[bool, tuple[int, ...]]:
    """Groups of the same kind can share a prefix.

    Groups that are cut on the left have another beginning, and would leave the others no prefix.
    """
    is_cut = any(pair.is_cut(max_length) for pair in group)
    return is_cut, _lengths(decoder, group, max_length)


def _lengths(decoder: Decoder, group: Sequence[TokenPair], max_length: int) -> tuple[int, ...]:
    """The representatives of the lengths in a group: several if its rotary factors differ."""
    find = decoder.length_classes.representative
    return tuple(sorted({find(len(pair.inputs(max_length))) for pair in group}))


def _shared_prefix(groups: Sequence[Sequence[TokenPair]], max_length: int) -> tuple[int, ...]:
    """The longest common prefix of all inputs that ends before the first predicted token."""
    pairs = list(chain.from_iterable(groups))
    inputs = [pair.inputs(max_length) for pair in pairs]
    # All inputs share what the first and the last one in lexicographic order share.
    shared = common_length(min(inputs), max(inputs))
    predicting = min(len(ids) - len(r.continuation) for ids, r in zip(inputs, pairs, strict=True))
    return inputs[0][: min(shared, predicting)]


def batches_by_length(lengths: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """Indices by falling length, in batches of at most `budget` tokens with padding.

    A sequence that is longer than the budget is a batch of its own.
    """
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
    hidden, inputs = decoder.embed_tree(
        batch.input_ids, batch.depths + length, visible, prefix, batch.lengths
    )
    hidden = decoder.run(hidden, inputs, 0, decoder.num_layers, cache=prefix)
    values = read_off(decoder, hidden, batch)
    _refuse_not_finite(decoder, values)
    return values.tolist()


def read_off(decoder: Decoder, hidden: Tensor, batch: TreeBatch) -> Tensor:
    """Each pair's summed log-probability (nats), (pairs,) in float64 on the CPU.

    `hidden` (batch, time, d), the output of any block, goes through the final norm and the head.
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


def _refuse_long(groups: Sequence[Sequence[TokenPair]], max_length: int) -> None:
    longest = max((len(r.continuation) for group in groups for r in group), default=0)
    if longest > max_length:
        raise UsageError(
            f"questions: an answer is {longest} tokens long, and the model reads {max_length}; "
            "shorten it, or leave the question out"
        )


def _refuse_unknown(groups: Sequence[Sequence[TokenPair]], embeddings: int) -> None:
    ids = (max(*pair.context, *pair.continuation) for group in groups for pair in group)
    highest = max(ids, default=0)
    if highest >= embeddings:
        raise UsageError(
            f"model: token id {highest} has no embedding, the model has {embeddings}; use the "
            "tokenizer that came with the model"
        )


def _refuse_not_finite(decoder: Decoder, values: Tensor) -> None:
    if not values.isfinite().all():
        config = decoder.model.config
        raise UsageError(
            f"model: {config.name_or_path or config.model_type} gives log-probabilities that are "
            "not finite; try --dtype float32, or check its weights"
        )
