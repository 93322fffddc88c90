"""First-order estimate of how much each word disturbs, from its embedding (HotFlip, 1712.06751).

It takes one backward pass per question instead of one forward pass per word and question.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.prompts import prompt_requests
from defuse.attacks.rephrase.templates import plain
from defuse.attacks.triggers.exact import Place
from defuse.attacks.triggers.words import Ids
from defuse.evaluate import Settings
from defuse.evaluate.loglikelihood import TOKEN_BUDGET
from defuse.evaluate.token_tree import TokenTree, collate, common_length, grow, visibility
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.lm_head import tokenwise
from defuse.questions import Question, few_shot_part
from defuse.utils.random import generator

DEVICE_TOKEN_BUDGET = 4096  # tokens of a batch; backward passes keep more than forward ones
ROWS = 4096  # of the embedding at a time
MARGIN = 8  # words drawn for each one needed, since a question may mention some


@dataclass(frozen=True)
class Asked:
    """A question with a placeholder word: the tree of its tokens and answers, the number of the
    right answer, and the place of the placeholder among the tokens."""

    tree: TokenTree
    answer: int
    place: int


def placed(
    questions: Sequence[Question],
    words: Ids,
    place: Place,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    *,
    count: int,
    max_length: int,
) -> list[Asked]:
    """Return each question with `count` of the words in place, drawn from (place's seed, id).

    `words` have one token each; the token at which the prompts differ is the placeholder. Questions
    in which that is more than one place (at the start of a line, with many tokenizers) are left
    out, and so are those too long for the model.
    """
    drawn = [_draw(question, list(words), count, place.seed) for question in questions]
    prefix = few_shot_part(settings.subject, settings.few_shot, settings.score)
    prompts = [
        plain(place.put(word, question), settings.score).behind(prefix)
        for question, some in zip(questions, drawn, strict=True)
        for word in some
    ]
    encoded = iter(prompt_requests(tokenizer, prompts))
    asked: list[Asked] = []
    for question, some in zip(questions, drawn, strict=True):
        by_word = [next(encoded) for _ in some]
        contexts = [requests[0].context for requests in by_word]
        start = min(common_length(contexts[0], context) for context in contexts[1:])
        frame = contexts[0][:start], contexts[0][start + 1 :]
        expected = [(*frame[0], *words[word], *frame[1]) for word in some]
        fits = not any(request.is_cut(max_length) for each in by_word for request in each)
        if fits and contexts == expected:
            trees = [grow(requests, 0, max_length) for requests in by_word]
            asked += [Asked(tree, question.answer, start) for tree in trees]
    return asked


def _draw(question: Question, words: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw `count` of the words, preferring those that the question does not mention."""
    rng = generator(seed, "placeholder", question.id)
    order = torch.randperm(len(words), generator=rng)[: MARGIN * count]
    some = [words[int(place)] for place in order]
    return sorted(some, key=lambda word: question.mentions(word))[:count]


def first_order(model: PreTrainedModel, asked: Sequence[Asked], ids: Ids) -> dict[str, float]:
    """Return the first-order fall (nats) of the right answer's log-probability for each word.

    −(E[v] − E[placeholder]) · g, averaged over `asked`, where g is the gradient with respect to the
    placeholder's embedding; for a word of several tokens v, their mean.
    """
    decoder = Decoder(model, recompute=True)
    total = torch.zeros(decoder.hidden_size, device=decoder.device)
    offset = 0.0
    budget = TOKEN_BUDGET.get(decoder.device.type, DEVICE_TOKEN_BUDGET)
    with frozen_model(model), torch.enable_grad():
        for batch in _batches(asked, budget):
            embedded, gradients = placeholder_gradients(decoder, batch)
            total += gradients.float().sum(dim=0)
            offset += float((embedded.float() * gradients.float()).sum())
        falls = (offset - _dots(decoder, total)) / len(asked)
    return {word: float(falls[list(tokens)].mean()) for word, tokens in ids.items()}


def placeholder_gradients(decoder: Decoder, batch: Sequence[Asked]) -> tuple[Tensor, Tensor]:
    """The placeholders' embeddings, and d log p(right | choices) / d embedding: (batch, d)."""
    trees = collate([each.tree for each in batch], decoder.device)
    with _embedding_kept(decoder.model) as kept:
        hidden, inputs = decoder.embed_tree(
            trees.input_ids, trees.depths, visibility(trees.last, 0)
        )
    hidden = decoder.run(hidden, inputs, 0, decoder.num_layers).flatten(0, 1)[trees.nodes]

    def logprob(some: Tensor, pairs: slice) -> Tensor:
        logits = decoder.logits(some)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = trees.targets[pairs, None]
        return logits.gather(1, targets)[:, 0] - logits.logsumexp(dim=1)

    values = tokenwise(logprob, hidden, decoder.vocab_size)
    counts = [len(each.tree.predicting) for each in batch]
    sums = values.new_zeros(sum(counts)).index_add(0, trees.owners, values)
    rows = torch.arange(len(batch), device=decoder.device)
    right, places = (
        torch.tensor(numbers, device=decoder.device)
        for numbers in zip(*((each.answer, each.place) for each in batch), strict=True)
    )
    logprobs = pad_sequence(list(sums.split(counts)), batch_first=True, padding_value=-torch.inf)
    aim = logprobs.log_softmax(dim=1)[rows, right].sum()
    (gradient,) = torch.autograd.grad(aim, kept[0])
    return kept[0].detach()[rows, places], gradient[rows, places]


@contextmanager
def _embedding_kept(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Keep the outputs of the embedding, where gradients then end, while the block runs."""
    kept: list[Tensor] = []

    def keep(_: object, __: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


@torch.no_grad()
def _dots(decoder: Decoder, direction: Tensor) -> Tensor:
    """E[v] · direction for every token v, with E[v] scaled as the embedding module scales it."""
    table = decoder.model.get_input_embeddings()
    numbers = torch.arange(decoder.num_embeddings, device=decoder.device)
    dots = [table(some).float() @ direction for some in numbers.split(ROWS)]
    return torch.cat(dots).cpu().double()


def _batches(asked: Sequence[Asked], budget: int) -> Iterator[list[Asked]]:
    """Split into batches of at most `budget` tokens with padding (or one question)."""
    batch: list[Asked] = []
    for each in sorted(asked, key=lambda each: -len(each.tree.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tree.tokens) > budget:
            yield batch
            batch = []
        batch.append(each)
    yield batch
