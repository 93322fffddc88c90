"""Checksums that tell models and tokenizers apart, and none that are the same."""

from copy import deepcopy

import torch
from transformers import AddedToken

from defuse.utils.identity import config_checksum, tokenizer_checksum, weights_checksum
from defuse.utils.provenance import fingerprint
from tests.conftest import build_llama, build_tokenizer


def test_one_value_changes_the_checksum_of_weights_even_where_no_sample_falls() -> None:
    model = build_llama(layers=2)
    sampled, whole = fingerprint(model), weights_checksum(model)
    assert weights_checksum(build_llama(layers=2)) == whole
    weight = max(model.parameters(), key=torch.Tensor.numel)
    with torch.no_grad():
        weight.view(-1)[1] += 1e-3
    if weight.numel() >= 2048:
        assert fingerprint(model) == sampled
    assert weights_checksum(model) != whole
    assert weights_checksum(build_llama(layers=2).bfloat16()) != whole


def test_the_configuration_counts_and_where_it_lies_does_not() -> None:
    model = build_llama(layers=2)
    before = config_checksum(model)
    model.config.name_or_path = "elsewhere"
    assert config_checksum(model) == before
    model.config.max_position_embeddings = 32
    assert config_checksum(model) != before


def test_a_tokenizer_is_told_by_vocabulary_and_special_tokens_not_by_its_last_call() -> None:
    tokenizer = build_tokenizer()
    before = tokenizer_checksum(tokenizer)
    assert tokenizer_checksum(build_tokenizer()) == before
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert tokenizer_checksum(tokenizer) == before
    other = deepcopy(tokenizer)
    other.add_tokens([AddedToken("aardvark")])
    assert tokenizer_checksum(other) != before
