"""What a forget-token and noise do to hidden states and to the loss, measured on a model.

All values are those at the last token of the prompt, where the answer is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defuse.evaluate import Settings
from defuse.evaluate.answers import Part
from defuse.evaluate.encoding import encode_questions
from defuse.evaluate.token_tree import TokenPair
from defuse.losses.tokens import next_token_log_probs
from defuse.models.decoder import BlockInputs, Decoder
from defuse.models.freeze import frozen_model
from defuse.models.load import LoadedModel
from defuse.questions import FORGET_TOKEN, Perturbation, Question
from defuse.utils.precision import upcast
from defuse.utils.progress import SILENT, Progress
from defuse.utils.random import generator

NOISE_DRAWS = 4  # for each question


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
    loaded: LoadedModel, part: Part, perturbation: Perturbation, progress: Progress = SILENT
) -> Shifts:
    """Run each question without and with a forget-token, and keep the values at every layer."""
    settings = part.settings
    perturbed = [perturbation.variants(q, settings.seed)[FORGET_TOKEN] for q in part.questions]
    both = (encode_right(each, settings, loaded) for each in (part.questions, perturbed))
    decoder, states, gradients, shifts = Decoder(loaded.model), [], [], []
    with frozen_model(loaded.model):
        for original, other in zip(*both, strict=True):
            state, gradient = _state_and_gradient(decoder, original)
            states.append(state)
            gradients.append(gradient)
            shifts.append(_state(decoder, other) - state)
            progress.advance()
    spread = torch.stack(states, dim=1).var(dim=1, unbiased=False).mean(dim=-1).sqrt()
    return Shifts(torch.stack(shifts, dim=1), torch.stack(gradients, dim=1), spread)


@torch.no_grad()
def measure_flips(
    loaded: LoadedModel, part: Part, shifts: Shifts, layer: int, noise_std: float
) -> list[bool]:
    """Whether noise reverses the sign of the loss change, for each question and draw of noise.

    The model continues from the shifted state of `layer`, without and with noise of the standard
    deviation `noise_std`.
    """
    decoder, found = Decoder(loaded.model), []
    requests = encode_right(part.questions, part.settings, loaded)
    with frozen_model(loaded.model):
        for question, request, shift in zip(
            part.questions, requests, shifts.shift[layer], strict=True
        ):
            hidden, inputs, last = start(decoder, request)
            hidden = decoder.run(hidden, inputs, 0, layer + 1)
            rows = hidden.expand(2 + NOISE_DRAWS, -1, -1).clone()  # as it is, shifted, and noised
            rng = generator(part.settings.seed, "theory", layer, question.id)
            noise = torch.randn(NOISE_DRAWS, hidden.shape[-1], generator=rng)
            rows[1:, last] += shift.to(rows)
            rows[2:, last] += (noise_std * noise).to(rows)
            final = decoder.run(rows, inputs, layer + 1, decoder.num_layers)
            losses = answer_loss(decoder, final, request, last)
            without, with_noise = losses[1] - losses[0], losses[2:] - losses[0]
            found += (without * with_noise < 0).tolist()
    return found


def encode_right(
    questions: Sequence[Question], settings: Settings, loaded: LoadedModel
) -> list[TokenPair]:
    """Encode each question's prompt with its right answer."""
    asked = encode_questions(questions, settings, loaded.tokenizer)
    return [pairs[question.answer] for question, pairs in zip(questions, asked, strict=True)]


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
    _, *states = decoder.states(hidden.detach().requires_grad_(), inputs)
    loss = answer_loss(decoder, states[-1], request, last)
    return _at(last, states), _at(last, torch.autograd.grad(loss.sum(), states))


@torch.no_grad()
def _state(decoder: Decoder, request: TokenPair) -> Tensor:
    hidden, inputs, last = start(decoder, request)
    _, *states = decoder.states(hidden, inputs)
    return _at(last, states)


def _at(token: int, by_layer: Sequence[Tensor]) -> Tensor:
    """The values at one token, (L, d)."""
    return upcast(torch.stack([each[0, token] for each in by_layer]).detach()).cpu()
