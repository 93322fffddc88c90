"""How much each word would disturb, to first order in its embedding (HotFlip, 1712.06751).

One backward pass per question instead of one forward pass per word and question.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.rephrase.templates import plain
from defuse.attacks.triggers.exact import Place
from defuse.attacks.triggers.words import Ids
from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.loglikelihood import TOKEN_BUDGET
from defuse.evaluate.token_tree import TokenTree, collate, common_length, grow, visibility
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.models.lm_head import tokenwise
from defuse.questions import Question, few_shot_part
from defuse.utils.random import generator

DEVICE_TOKEN_BUDGET = 4096  # tokens of a batch; backward passes keep more than forward ones
ROWS = 4096  # of the embedding at a time
MARGIN = 8  # words drawn for each that is needed: a question may mention some


@dataclass(frozen=True)
class Asked:
    """A question behind a placeholder: its tokens with the four answers, of which `answer` is
    right, and which token is the placeholder."""

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
    """Each question with `count` words in place, drawn from (place's seed, question id).

    `words` are of one token each; where the drawn ones differ is the placeholder. Questions in
    which they do not fill one place (at the start of a line, for many tokenizers) are left out, and
    so are those too long for the model.
    """
    drawn = [_draw(question, list(words), count, place.seed) for question in questions]
    prefix = few_shot_part(settings.subject, settings.few_shot, settings.score)
    forms = [
        plain(place.put(word, question), settings.score).behind(prefix)
        for question, some in zip(questions, drawn, strict=True)
        for word in some
    ]
    pairs = [(form.text, answer) for form in forms for answer in form.answers]
    requests = iter(encode_pairs(pairs, tokenizer))
    asked: list[Asked] = []
    for question, some in zip(questions, drawn, strict=True):
        fours = [[next(requests) for _ in range(4)] for _ in some]
        contexts = [four[0].context for four in fours]
        start = min(common_length(contexts[0], context) for context in contexts[1:])
        frame = contexts[0][:start], contexts[0][start + 1 :]
        expected = [(*frame[0], *words[word], *frame[1]) for word in some]
        fits = not any(request.is_cut(max_length) for four in fours for request in four)
        if fits and contexts == expected:
            trees = [grow(four, 0, max_length) for four in fours]
            asked += [Asked(tree, question.answer, start) for tree in trees]
    return asked


def _draw(question: Question, words: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the words, first of all those that the question does not mention."""
    rng = generator(seed, "placeholder", question.id)
    order = torch.randperm(len(words), generator=rng)[: MARGIN * count]
    some = [words[int(place)] for place in order]
    return sorted(some, key=lambda word: question.mentions(word))[:count]


def first_order(model: PreTrainedModel, asked: Sequence[Asked], ids: Ids) -> dict[str, float]:
    """Of each word, the first-order fall (nats) of the right answer's log-probability among four.

    −(E[v] − E[placeholder]) · g, averaged over `asked`, where g is the gradient with respect to
    the placeholder's embedding; of a word of several tokens v, their mean.
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
    """The placeholders' embeddings, and d log p(right answer | four) / d embedding: (batch, d)."""
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
    sums = values.new_zeros(4 * len(batch)).index_add(0, trees.owners, values)
    rows = torch.arange(len(batch), device=decoder.device)
    right, places = (
        torch.tensor(numbers, device=decoder.device)
        for numbers in zip(*((each.answer, each.place) for each in batch), strict=True)
    )
    aim = sums.view(-1, 4).log_softmax(dim=1)[rows, right].sum()
    (gradient,) = torch.autograd.grad(aim, kept[0])
    return kept[0].detach()[rows, places], gradient[rows, places]


@contextmanager
def _embedding_kept(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the embedding gives meanwhile is kept, and gradients end there."""
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
    """E[v] · direction for every token v, in the scale in which the embedding gives E[v]."""
    table = decoder.model.get_input_embeddings()
    numbers = torch.arange(decoder.num_embeddings, device=decoder.device)
    dots = [table(some).float() @ direction for some in numbers.split(ROWS)]
    return torch.cat(dots).cpu().double()


def _batches(asked: Sequence[Asked], budget: int) -> Iterator[list[Asked]]:
    """In batches of at most `budget` tokens with padding (or one question)."""
    batch: list[Asked] = []
    for each in sorted(asked, key=lambda each: -len(each.tree.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tree.tokens) > budget:
            yield batch
            batch = []
        batch.append(each)
    yield batch
