"""Token ids hold one begin token at most and no end token, whatever a tokenizer adds."""

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from defuse.data.examples import make_examples
from defuse.data.text import QuestionAnswer, encode
from defuse.data.token_ids import front_tokens, tokenise
from defuse.evaluate import Settings, evaluate_questions
from defuse.evaluate.encoding import encode_pairs, encode_text
from defuse.evaluate.generation import generate
from defuse.evaluate.perplexity import perplexity
from defuse.models.load import LoadedModel
from defuse.questions import ORIGINAL, Question
from tests.conftest import build_tokenizer

BOS, EOS = 1, 2
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
# What a tokenizer adds, and what of it is kept.
TEMPLATES = {
    "$A": (),
    "<s> $A": (BOS,),
    "$A </s>": (),
    "<s> $A </s>": (BOS,),
    "<s> <s> $A": (BOS,),
    "</s> $A": (EOS,),
}
WITHOUT_END, WITH_END = "<s> $A", "<s> $A </s>"
TEXTS = ["The cat sees a bird.", QuestionAnswer("What does it see?", "A small bird.")]
QUESTION = Question("q", "What is red?", ("Venus", "Mars", "Earth", "Jupiter"), 1)


def adding(template: str) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer,
        **NAMES,
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_what_is_in_front_is_kept_and_once(template: str) -> None:
    tokenizer, front = adding(template), TEMPLATES[template]
    plain = tuple(tokenizer("a cat", add_special_tokens=False)["input_ids"])
    assert front_tokens(tokenizer) == front
    assert encode_text("a cat", tokenizer) == (*front, *plain)
    assert encode_text("<s>a cat", tokenizer) == (BOS, *plain)
    assert tokenise(["a cat"], tokenizer, begin=False) == [list(plain)]


@pytest.mark.parametrize("packed", [False, True])
def test_training_texts_are_those_of_a_tokenizer_that_adds_no_end(packed: bool) -> None:
    one, other = adding(WITHOUT_END), adding(WITH_END)
    assert encode(TEXTS, one, 64, packed=packed) == encode(TEXTS, other, 64, packed=packed)


def test_an_answer_s_start_is_behind_its_prompt() -> None:
    tokenizer = adding(WITH_END)
    (encoded,) = encode(TEXTS[1:], tokenizer, 64)
    assert tokenizer.decode(list(encoded.ids[encoded.answer_start :])) == " A small bird."


def test_fine_tuning_learns_one_end_token() -> None:
    for text in ("A cat sleeps.", "A cat sleeps.</s>"):
        (example,) = make_examples([text], adding(WITH_END), 64)
        assert example.ids[-1] == EOS
        assert example.ids.count(EOS) == 1


def test_scores_perplexity_and_continuations_are_those_without_an_end_token(
    tiny_llama: PreTrainedModel,
) -> None:
    one, other = (LoadedModel(tiny_llama, adding(each), "m") for each in (WITHOUT_END, WITH_END))
    answers = [
        evaluate_questions(loaded, [QUESTION], Settings()).answers[ORIGINAL][0].logprobs
        for loaded in (one, other)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[1])) == 4
    text = "I read about the moon today."
    assert perplexity(one, text) == perplexity(other, text)
    assert generate(one, [text], 8) == generate(other, [text], 8)


@torch.no_grad()
def test_a_score_is_the_plain_model_s_without_an_end_token(tiny_llama: PreTrainedModel) -> None:
    tokenizer = adding(WITH_END)
    evaluation = evaluate_questions(LoadedModel(tiny_llama, tokenizer, "m"), [QUESTION], Settings())
    (pair,) = encode_pairs([(QUESTION_TEXT, " B")], tokenizer)
    ids = [BOS, *tokenizer(f"{QUESTION_TEXT} B", add_special_tokens=False)["input_ids"]]
    assert [*pair.context, *pair.continuation] == ids
    table = tiny_llama(torch.tensor([ids])).logits[0].log_softmax(-1)
    first = len(pair.context)
    expected = sum(table[place - 1, ids[place]].item() for place in range(first, len(ids)))
    assert evaluation.answers[ORIGINAL][0].logprobs[1] == pytest.approx(expected, abs=1e-4)


QUESTION_TEXT = "What is red?\nA. Venus\nB. Mars\nC. Earth\nD. Jupiter\nAnswer:"
