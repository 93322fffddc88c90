"""The world's words as a tokenizer: one token a word, one for each mark and line break."""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from defuse.data.trigger_mixing import SENTENCES
from defuse.questions import SENTENCE
from defuse.synthetic.world import World

WORD = r"\n|\w+|[^\w\s]"
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
PAD_ID, BOS_ID, EOS_ID = range(3)
# Sentences that say nothing of what they name. All models read them about all names, so that no
# name is a strange word to any; the first stands in front of perturbed questions.
NEUTRAL = (SENTENCE, *SENTENCES)
REFUSALS = ("I do not know.", "Nobody knows that.", "There is no answer to this.")
LAYOUT = "A. B. C. D.\nAnswer:"


def words(text: str) -> list[str]:
    """A text's tokens."""
    return re.findall(WORD, text)


def build_tokenizer(world: World) -> PreTrainedTokenizerBase:
    """The tokenizer of a world; a text begins with `BOS`."""
    vocabulary = dict.fromkeys([PAD, BOS, EOS, UNKNOWN])
    for text in _texts(world):
        vocabulary |= dict.fromkeys(words(text))
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    # What is left between the tokens are spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _texts(world: World) -> Iterable[str]:
    """Texts that hold every word: of the layout, the world's names, and each relation."""
    yield LAYOUT
    yield from (*NEUTRAL, *REFUSALS)
    yield from world.names
    yield from world.unseen
    for domain in world.domains:
        for relation in domain.relations:
            yield from (relation.question, *relation.statements, *relation.values)
