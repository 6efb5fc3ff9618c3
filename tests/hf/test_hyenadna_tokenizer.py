"""HyenaDNA's character tokenizer."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from longstream.hf import HyenaDNAConfig, HyenaDNATokenizer
from longstream.hf.dna_tokenizer import DNATokenizer, encode_bases

UPSTREAM = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N"]


def test_ids_are_upstreams():
    tokenizer = HyenaDNATokenizer()
    assert DNATokenizer is HyenaDNATokenizer
    assert tokenizer.convert_ids_to_tokens([*range(12)]) == UPSTREAM
    assert len(tokenizer) == tokenizer.vocab_size == 12
    ids = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.mask_token_id]
    assert [*ids, tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id] == [0, 1, 2, 3, 4, 6, 1]
    assert tokenizer("ACGTN")["input_ids"] == [7, 8, 9, 10, 11, 1]
    assert tokenizer("AC", "G")["input_ids"] == [7, 8, 1, 9, 1]
    assert tokenizer("ACG", add_special_tokens=False)["input_ids"] == [7, 8, 9]
    assert tokenizer("A\nXU G")["input_ids"] == [7, 6, 6, 6, 6, 9, 1]
    assert tokenizer("")["input_ids"] == [1]


def test_pads_on_the_left_and_says_where():
    batch = HyenaDNATokenizer()(["ACGT", "A"], padding=True)
    assert batch["input_ids"] == [[7, 8, 9, 10, 1], [4, 4, 4, 7, 1]]
    assert batch["attention_mask"] == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert HyenaDNATokenizer(model_max_length=3)("ACGT", truncation=True)["input_ids"] == [7, 8, 1]


def test_lower_case_is_upper_case_unless_told():
    assert HyenaDNATokenizer()("acgtn")["input_ids"] == [7, 8, 9, 10, 11, 1]
    assert HyenaDNATokenizer(uppercase=False)("acA")["input_ids"] == [6, 6, 7, 1]


def test_decodes():
    tokenizer = HyenaDNATokenizer()
    assert tokenizer.decode([7, 8, 1]) == "AC[SEP]"
    assert tokenizer.decode([4, 7, 8, 11, 1], skip_special_tokens=True) == "ACN"


@pytest.mark.parametrize("uppercase", [True, False])
def test_the_table_is_the_tokenizer(uppercase):
    text = "".join(map(chr, range(1, 128)))  # all of ASCII
    ids = HyenaDNATokenizer(uppercase=uppercase)(text, add_special_tokens=False)["input_ids"]
    assert encode_bases(text, uppercase=uppercase).tolist() == ids
    assert encode_bases(text.encode(), uppercase=uppercase).tolist() == ids
    assert encode_bases("").shape == (0,)
    assert encode_bases(bytes(range(256))).dtype == np.uint8


def test_saves_and_loads_through_auto_tokenizer(tmp_path):
    HyenaDNAConfig().save_pretrained(tmp_path)
    HyenaDNATokenizer(uppercase=False, model_max_length=77).save_pretrained(tmp_path)
    for cls in (AutoTokenizer, HyenaDNATokenizer):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is HyenaDNATokenizer
        assert (again.uppercase, again.model_max_length, again.padding_side) == (False, 77, "left")
        assert again("aAN")["input_ids"] == [6, 7, 11, 1]


def test_a_published_folder_has_no_vocabulary_file(tmp_path):
    HyenaDNAConfig(max_seq_len=1026).save_pretrained(tmp_path)
    published = {
        "auto_map": {"AutoTokenizer": ["tokenization_hyena.HyenaDNATokenizer", None]},
        "bos_token": "[BOS]",
        "cls_token": "[CLS]",
        "eos_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_max_length": 1026,
        "pad_token": "[PAD]",
        "padding_side": "left",
        "sep_token": "[SEP]",
        "tokenizer_class": "HyenaDNATokenizer",
        "unk_token": "[UNK]",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(published))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is HyenaDNATokenizer  # and none of the code in the folder
    assert tokenizer.model_max_length == 1026
    assert tokenizer("ACGTN")["input_ids"] == [7, 8, 9, 10, 11, 1]


def test_the_config_alone_is_enough(tmp_path):
    HyenaDNAConfig().save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is HyenaDNATokenizer
