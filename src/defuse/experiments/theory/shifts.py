"""Shifts of hidden states by a forget-token, and gradients there, measured on a model.

All values are those at the last token of the prompt, where the answer is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.evaluate import Settings
from defuse.evaluate.encoding import encode_pairs
from defuse.evaluate.token_tree import TokenPair
from defuse.losses.tokens import next_token_log_probs
from defuse.models.decoder import BlockInputs, Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import LoadedModel
from defuse.questions import Question, Score, ask, continuations, few_shot_part
from defuse.utils.precision import upcast
from defuse.utils.progress import SILENT, Progress


@dataclass(frozen=True)
class Shifts:
    """Values for N questions and L layers of width d in float32; layer l is the output of block l.

    `shift` (L, N, d): ε, the hidden state with the forget-token minus the one without. `gradient`
    (L, N, d): g, the gradient of the right answer's negative log-probability (nats) with respect to
    the state without. `spread` (L,): the standard deviation of the states per unit.
    """

    shift: Tensor
    gradient: Tensor
    spread: Tensor

    def effects(self, layer: int) -> Tensor:
        """Compute g·ε/‖g‖ of each question at a layer, (N,), in float64."""
        shift, gradient = (each[layer].double() for each in (self.shift, self.gradient))
        return (gradient / gradient.norm(dim=1, keepdim=True) * shift).sum(dim=1)


def measure_shifts(
    loaded: LoadedModel,
    pairs: Sequence[tuple[Question, Question]],
    settings: Settings,
    progress: Progress = SILENT,
) -> Shifts:
    """Run (original, perturbed) pairs of questions and keep the values at every layer."""
    decoder = Decoder(loaded.model)
    shifts, gradients, states = [], [], []
    with frozen_model(loaded.model):
        for original, perturbed in pairs:
            state, gradient = _state_and_gradient(decoder, request_of(original, loaded, settings))
            other = _states(decoder, request_of(perturbed, loaded, settings))
            states.append(state)
            gradients.append(gradient)
            shifts.append(other - state)
            progress.advance()
    stacked = torch.stack(states, dim=1)
    spread = stacked.var(dim=1, unbiased=False).mean(dim=-1).sqrt()
    return Shifts(torch.stack(shifts, dim=1), torch.stack(gradients, dim=1), spread)


def request_of(question: Question, loaded: LoadedModel, settings: Settings) -> TokenPair:
    """Encode the prompt and the right answer of a question."""
    how: Score = settings.score
    context = few_shot_part(settings.subject, settings.few_shot, how) + ask(question, how)
    answer = continuations(question, how)[question.answer]
    return encode_pairs([(context, answer)], loaded.tokenizer)[0]


def start(decoder: Decoder, request: TokenPair) -> tuple[Tensor, BlockInputs, int]:
    """Embed a request; also the inputs of the blocks and the index of the prompt's last token."""
    ids = (*request.context, *request.continuation)[:-1]
    hidden, inputs = decoder.embed(torch.tensor([ids], device=decoder.device))
    return hidden, inputs, len(request.context) - 1


def answer_loss(decoder: Decoder, hidden: Tensor, request: TokenPair, last: int) -> Tensor:
    """Compute −log p(answer) in nats, (rows,), from the final hidden states (rows, time, d)."""
    targets = torch.tensor(request.continuation, device=hidden.device)
    logits = decoder.logits(hidden[:, last : last + len(targets)])
    labels = targets.expand(len(hidden), -1)
    log_probs = next_token_log_probs(logits.flatten(0, 1), labels.flatten())
    return -log_probs.view(len(hidden), -1).sum(dim=-1)


def _state_and_gradient(decoder: Decoder, request: TokenPair) -> tuple[Tensor, Tensor]:
    """Compute the states at the last prompt token and the loss's gradients there, both (L, d)."""
    hidden, inputs, last = start(decoder, request)
    seen = [hidden.detach().requires_grad_()]
    for layer in range(decoder.num_layers):
        seen.append(decoder.run(seen[-1], inputs, layer, layer + 1))
    loss = answer_loss(decoder, seen[-1], request, last)
    gradients = torch.autograd.grad(loss.sum(), seen[1:])
    picked = [torch.stack([each[0, last] for each in some]) for some in (seen[1:], gradients)]
    state, gradient = (upcast(each.detach()).cpu() for each in picked)
    return state, gradient


@torch.no_grad()
def _states(decoder: Decoder, request: TokenPair) -> Tensor:
    hidden, inputs, last = start(decoder, request)
    states = []
    for layer in range(decoder.num_layers):
        hidden = decoder.run(hidden, inputs, layer, layer + 1)
        states.append(upcast(hidden[0, last]).cpu())
    return torch.stack(states)
