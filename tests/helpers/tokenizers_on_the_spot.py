"""Tokenizers of the kinds that models have, trained on text at hand."""

from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
NAMES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
BOS = {"bos_token": "<s>"}


def byte_bpe(texts: Sequence[str], vocab_size: int = 600) -> PreTrainedTokenizerBase:
    """GPT-2's and SmolLM2's kind: byte-level BPE, no BOS in front; EOS only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def bytes_only(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A token a byte: " A" takes two."""
    return byte_bpe(texts, vocab_size=256 + len(SPECIAL))


def unigram(texts: Sequence[str], vocab_size: int = 600) -> PreTrainedTokenizerBase:
    """SentencePiece's kind, as Llama 2's and T5's: unigram pieces, ▁ for a space, a BOS."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        unk_token=NAMES["unk_token"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES, **BOS)


KINDS = {"byte-bpe": byte_bpe, "bytes-only": bytes_only, "unigram": unigram}
