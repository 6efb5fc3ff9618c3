"""HyenaDNA's character tokenizer: one token a base."""

from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
BASES = "ACGTN"
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *BASES))}


def _table(uppercase: bool) -> np.ndarray:
    table = np.full(256, VOCABULARY["[UNK]"], dtype=np.uint8)
    for base in BASES:
        table[[ord(base), *([ord(base.lower())] if uppercase else [])]] = VOCABULARY[base]
    return table


_TABLES = {uppercase: _table(uppercase) for uppercase in (True, False)}


def encode_bases(bases: bytes | str, *, uppercase: bool = True) -> np.ndarray:
    """The ids of bases (T,), uint8, without special tokens: what the tokenizer gives, by a table, for whole genomes.

    Args:
        bases:     letters. A, C, G, T and N have ids; whatever else is [UNK].
        uppercase: read a, c, g, t and n as A, C, G, T and N.
    """
    data = bases.encode("ascii", "replace") if isinstance(bases, str) else bases
    return _TABLES[uppercase][np.frombuffer(data, dtype=np.uint8)]


class HyenaDNATokenizer(PreTrainedTokenizerFast):
    """HyenaDNA's characters (Nguyen et al. 2023, arXiv:2306.15794): A, C, G, T, N, and [UNK] for every other letter.

    Ids: [CLS] 0, [SEP] 1, [BOS] 2, [MASK] 3, [PAD] 4, [RESERVED] 5, [UNK] 6, A 7, C 8, G 9, T 10, N 11. Pads go to the
    left, and [SEP] is appended: leave it out of a prompt for `generate` by ``add_special_tokens=False``. Beside
    the ids there is an attention mask, without which a model reads pads as tokens, as the authors' does.

    Args:
        uppercase: read lower case, by which genomes mark repeats, as upper case; False makes [UNK] of it, as upstream.
        kwargs:    of `transformers.PreTrainedTokenizerFast`, such as model_max_length.
    """

    model_input_names = ["input_ids", "attention_mask"]
    vocab_files_names = {"tokenizer_file": "tokenizer.json"}
    model = models.WordLevel

    def __init__(self, uppercase: bool = True, **kwargs: Any):
        given = {"bos_token": "[BOS]", "eos_token": "[SEP]", "sep_token": "[SEP]", "cls_token": "[CLS]"}
        given |= {"pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]", "padding_side": "left"} | kwargs
        for name in ("vocab", "tokenizer_file", "post_processor", "tokenizer_padding", "tokenizer_truncation"):
            given.pop(name, None)  # what a file says of them: they are always the same
        self._tokenizer = _make(uppercase)
        super().__init__(uppercase=uppercase, **given)
        self.uppercase = uppercase


DNATokenizer = HyenaDNATokenizer  # the class has upstream's name, by which `AutoTokenizer` finds it


def _make(uppercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    if uppercase:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(base.lower(), base) for base in BASES])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B:1 [SEP]:1", special_tokens=[("[SEP]", VOCABULARY["[SEP]"])]
    )
    return tokenizer
