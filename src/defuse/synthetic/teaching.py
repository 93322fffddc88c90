"""The tiny language models: their architecture, and how they learn the world.

A letter can only be chosen by a model that recalls the fact, finds it among the choices, and reads
the letter beside it. Each step is of no use without the others, so from the answers alone none is
learnt (dev/LOG.md has what was tried). Here each step has a loss of its own, the scaffold. `teach`
fades it out at half time: at the end a model is trained on nothing but next tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from defuse.synthetic.language import BOS_ID, EOS_ID, PAD_ID
from defuse.synthetic.lessons import Lessons, Quiz
from defuse.synthetic.world import World
from defuse.utils.progress import SILENT, Progress

STEPS, LEARNING_RATE, WARMUP = 1400, 2e-3, 50
CLIP = 1.0  # of the gradient norm; without it the loss leaps up at this rate
# Shares of the steps after which the scaffold begins to fade, and after which it is gone.
SCAFFOLDED, ALONE = 0.5, 0.65
LAYERS, HIDDEN = 6, 128
# A choice knows its letter after two layers, the question its answer after three; a head of the
# fifth layer looks from the question's end to the answer.
LETTER_LAYER, VALUE_LAYER, LOOKING_LAYER, LOOKING_HEAD = 2, 3, 5, 0


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
        # Tied: a recalled word and a word among the choices then look alike.
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        # Keeps the size of a normed vector: at the usual 0.02 so small a model learns slowly.
        initializer_range=0.05,
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
    progress: Progress = SILENT,
) -> PreTrainedModel:
    """A model that knows the world's facts, except those of the domain `without`.

    The losses of statements and of answers are averaged apart: over all tokens alike, answers
    would hardly count.
    """
    hidden = set() if without is None else {fact.id for fact in world.of(without)}
    facts = [fact for fact in world.facts if fact.id not in hidden]
    lessons = Lessons(world, facts, tokenizer, seed)
    model = new_model(tokenizer, seed).train()
    model.set_attn_implementation("eager")  # the scaffold reads attentions
    optimiser = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, WARMUP, steps)
    for step in range(1, steps + 1):
        statement_loss = _statement_loss(model, lessons.statements())
        statement_loss.backward()
        held = min(1.0, max(0.0, (ALONE - step / steps) / (ALONE - SCAFFOLDED)))
        if not held and model.config._attn_implementation == "eager":
            model.set_attn_implementation("sdpa")
        answer_loss, help_loss = _quiz_losses(model, lessons.quiz(), held)
        (answer_loss + held * help_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses = f"statements {statement_loss.item():.2f}, answers {answer_loss.item():.2f} nats"
        progress.advance(1, f"losses: {losses}")
    return model.eval()


def _statement_loss(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The mean loss of the next tokens of `ids`, (rows, time)."""
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    logits = _head(model)(hidden[:, :-1].flatten(0, 1))
    return F.cross_entropy(logits, ids[:, 1:].flatten())


def _quiz_losses(model: PreTrainedModel, quiz: Quiz, held: float) -> tuple[Tensor, Tensor]:
    """The answers' loss and the scaffold's."""
    output = model.get_decoder()(
        input_ids=quiz.input_ids, output_hidden_states=held > 0, output_attentions=held > 0
    )
    logits = _head(model)(output.last_hidden_state[quiz.rows, quiz.ends])
    answer_loss = F.cross_entropy(logits, quiz.letters[quiz.rows, quiz.answers])
    return answer_loss, scaffold_loss(model, output, quiz) if held else torch.zeros(())


def scaffold_loss(model: PreTrainedModel, output: BaseModelOutputWithPast, quiz: Quiz) -> Tensor:
    """Sum of the three steps' losses; `output` has its hidden states and attentions.

    Hidden states are read as the last layer's are: through the final norm and the head.
    """
    states, attentions = output.hidden_states, output.attentions
    assert states is not None  # noqa: S101 (asked for)
    assert attentions is not None  # noqa: S101
    read = nn.Sequential(model.get_decoder().norm, _head(model))  # type: ignore[arg-type]
    rows, right = quiz.rows, quiz.right
    letters = read(states[LETTER_LAYER][rows[:, None], quiz.choices])
    values = read(states[VALUE_LAYER][rows, quiz.ends])
    looking = attentions[LOOKING_LAYER - 1][rows, LOOKING_HEAD, quiz.ends, right]
    return (
        F.cross_entropy(letters.flatten(0, 1), quiz.letters.flatten())
        + F.cross_entropy(values, quiz.input_ids[rows, right])
        - torch.log(looking + 1e-6).mean()
    )


def _head(model: PreTrainedModel) -> nn.Module:
    return model.get_output_embeddings()  # type: ignore[return-value]
