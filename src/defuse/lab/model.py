"""The tiny language models: one taught the whole world, one that never saw the forget domain."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from defuse.lab.language import BOS_ID, EOS_ID, PAD_ID
from defuse.lab.lessons import IGNORED, Batch, Lessons
from defuse.lab.world import World

STEPS, LEARNING_RATE = 1600, 2e-3
CLIP = 1.0  # of the gradient norm; without it the loss leaps up at this rate
# Shares of the steps after which questions begin to be disturbed, and after which fully.
UNDISTURBED, DISTURBED = 0.5, 0.75
LAYERS, HIDDEN = 6, 128


@dataclass(frozen=True)
class Progress:
    """How far a training is; `loss` of statements and of answers (nats)."""

    step: int
    steps: int
    statement_loss: float
    answer_loss: float


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A random Llama of 6 layers × 128 over the tokenizer's words."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        # Tied: what is recalled and what stands among the choices then look alike.
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def teach(
    world: World,
    tokenizer: PreTrainedTokenizerBase,
    *,
    without: str | None = None,
    seed: int = 0,
    steps: int = STEPS,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> PreTrainedModel:
    """A model that knows the world's facts, but for those of the domain `without`.

    The losses of statements and of answers are averaged apart: over all tokens alike, answers
    would be lost among them.
    """
    hidden = set() if without is None else {fact.id for fact in world.of(without)}
    facts = [fact for fact in world.facts if fact.id not in hidden]
    lessons = Lessons(world, facts, tokenizer, seed)
    model = new_model(tokenizer, seed).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for step in range(1, steps + 1):
        losses, share = [], step / steps
        disturbed = min(1.0, max(0.0, (share - UNDISTURBED) / (DISTURBED - UNDISTURBED)))
        for batch in (lessons.statement_batch(), lessons.question_batch(disturbed)):
            loss = _loss(model, batch)
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        on_step(Progress(step, steps, *losses))
    return model.eval()


def _loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Mean over the tokens to predict; the head is applied only there."""
    hidden = model.get_decoder()(input_ids=batch.input_ids).last_hidden_state
    wanted = batch.labels != IGNORED
    head: nn.Module = model.get_output_embeddings()  # type: ignore[assignment]
    logits = head(hidden[wanted])
    return F.cross_entropy(logits, batch.labels[wanted])
