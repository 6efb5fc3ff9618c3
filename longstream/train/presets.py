"""Settings by name: for a first look, a demonstration, a laptop; and those of the papers, as far as they are published.

A paper's preset wants the paper's data and more memory and time than a laptop has. What its source does not state, or
what the harness does in another way, is said behind "Ours": schedules are cosines, biases and norms do not decay.
"""

from __future__ import annotations

from typing import Any

USUAL: dict[str, dict[str, Any]] = {
    # seconds: for a first look and for tests
    "tiny": {
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.expand_ratio": 16,
        "data.seq_len": 128,
        "train.steps": 200,
        "train.eval_every": 100,
        "train.save_every": 100,
    },
    # minutes on two cores, time and not steps being fixed
    "demo": {
        "data.files": ["builtin"],
        "data.seq_len": 256,
        "data.validation_fraction": 0.05,
        "model.hidden_size": 160,
        "model.num_hidden_layers": 4,
        "model.expand_ratio": 32,
        "model.intermediate_size": 448,
        "model.use_short_conv": True,
        "train.minutes": 3.8,
        "train.batch_size": 8,
        "train.learning_rate": 4e-3,
        "train.eval_every": 300,
        "train.save_every": 300,
    },
    # hours on a laptop
    "small": {
        "model.hidden_size": 512,
        "model.num_hidden_layers": 8,
        "model.expand_ratio": 128,
        "data.seq_len": 1024,
        "train.steps": 10_000,
        "train.learning_rate": 1e-3,
        "train.eval_every": 500,
        "train.save_every": 500,
    },
}

_HGRN = {"train.adam_beta1": 0.9, "train.adam_beta2": 0.98, "train.bf16": True, "train.warmup_ratio": 0.08}
_HYENA_BLOCK = ("norm=layer", "norm_eps=1e-5", "rescale_residual=true")
# Hgru2_1d, the authors' layer of everything but language (hgru2-pytorch at caf92f0d)
_HGRU2 = ("query_activation=sigmoid", "value_activation=silu", "norm=layer")

PAPERS: dict[str, dict[str, Any]] = {
    # HGRN, arXiv:2311.04823, its table of WikiText-103 (24.14 validation, 24.82 test, 46.25M); fairseq-evo at 38fa81f2:
    # 6 x 512, complex unit, GLU without activation of 2 D, dropout 0.1, tied; 128 sequences of 512 tokens, 100k
    # updates, 8000 of them warmup, weight decay 0.2, learning rate 5e-4.
    # Ours: BPE learned on the text; no embedding scale, no biases in the GLU; cosine for the inverse square root;
    # bfloat16 and gradients clipped at 1, which its source does not say.
    "paper-hgrn-wikitext103": {
        "model.name": "hgrn",
        "model.hidden_size": 512,
        "model.num_hidden_layers": 6,
        "model.intermediate_size": 1024,
        "model.mlp": "bilinear",
        "model.tie_word_embeddings": True,
        "model.mixer_options": ("unit=complex", "norm=layer", "bias=true"),
        "model.block_options": ("norm=layer", "norm_eps=1e-5", "dropout=0.1", "embed_dropout=0.1"),
        "data.tokenizer": "bpe:50257",
        "data.seq_len": 512,
        "train.batch_size": 128,
        "train.steps": 100_000,
        "train.learning_rate": 5e-4,
        "train.weight_decay": 0.2,
        **_HGRN,
    },
    # HGRN2, arXiv:2404.07904, its table of WikiText-103; same code: 50k updates, 4000 of them warmup, weight decay
    # 0.1, clipping 1, state of 128 a head, norms without weights, SiLU on the query and nothing on the value.
    # Ours: as above; width and depth are taken from HGRN's.
    "paper-hgrn2-wikitext103": {
        "model.name": "hgrn2",
        "model.hidden_size": 512,
        "model.num_hidden_layers": 6,
        "model.expand_ratio": 128,
        "model.intermediate_size": 1024,
        "model.mlp": "bilinear",
        "model.tie_word_embeddings": True,
        "model.mixer_options": ("norm=rms_no_weight", "norm_eps=1e-6"),
        "model.block_options": ("norm=rms_no_weight", "dropout=0.1", "embed_dropout=0.1"),
        "data.tokenizer": "bpe:50257",
        "data.seq_len": 512,
        "train.batch_size": 128,
        "train.steps": 50_000,
        "train.learning_rate": 5e-4,
        "train.weight_decay": 0.1,
        **_HGRN,
    },
    # Hyena, arXiv:2302.10866, Table 4.3 (Hyena-3, 18.6, 125M): 12 x 768, MLP 3072, order 3, filters of width 64 and
    # depth 4, sine frequency 14; safari at 02220c6: 33 positional features, short convolution of 3, tied, vocabulary
    # of GPT-2. Ours: BPE learned on the text; batch, length, rate and steps are those of the Pile runs of that size.
    "paper-hyena-wikitext103": {
        "model.name": "hyena",
        "model.hidden_size": 768,
        "model.num_hidden_layers": 12,
        "model.intermediate_size": 3072,
        "model.mlp": "gelu",
        "model.hyena_order": 3,
        "model.tie_word_embeddings": True,
        "model.mixer_options": ("filter_lr=6e-4", "positions_lr=6e-4"),
        "model.block_options": (*_HYENA_BLOCK, "embed_dropout=0.1", "vocab_multiple=8"),
        "data.tokenizer": "bpe:50257",
        "data.seq_len": 2048,
        "train.batch_size": 256,
        "train.steps": 30_000,
        "train.learning_rate": 6e-4,
        "train.adam_beta2": 0.98,
        "train.bf16": True,
    },
    # HyenaDNA, arXiv:2306.15794, the checkpoint tiny-1k; hyena-dna at d553021, configuration hg38: 2 x 128, MLP 512,
    # 5 positional features that are not trained, frequency 10, window shift 0.05, filters of 1024 + 2, learning rate
    # 6e-4. `longstream convert --to hyenadna` writes it in the authors' format. Ours: batch and steps.
    "paper-hyenadna-tiny": {
        "model.name": "hyena",
        "model.hidden_size": 128,
        "model.num_hidden_layers": 2,
        "model.intermediate_size": 512,
        "model.mlp": "gelu",
        "model.max_seq_len": 1026,
        "model.tie_word_embeddings": True,
        "model.mixer_options": (
            *("positional_width=5", "frequency=10", "window_shift=0.05"),
            *("filter_lr=6e-4", "positions_lr=0"),
        ),
        "model.block_options": (*_HYENA_BLOCK, "embed_dropout=0.1", "vocab_multiple=8"),
        "data.tokenizer": "dna",
        "data.seq_len": 1024,
        "train.batch_size": 256,
        "train.steps": 10_000,
        "train.learning_rate": 6e-4,
    },
    # Hyena, arXiv:2302.10866, associative recall over 131k tokens, vocabulary 30 (97.2 %); safari at 02220c6: 2 x 64,
    # 5 positional features that are not trained, frequency 10, filters of the length + 2; 4000 examples in batches of
    # 16; section 4: AdamW (0.9, 0.98), rate 5e-4, weight decay 0.1, 200 epochs, 10 of them warmup.
    "paper-hyena-recall-131k": {
        "model.name": "hyena",
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "model.intermediate_size": 256,
        "model.mlp": "gelu",
        "model.max_seq_len": 131_074,
        "model.tie_word_embeddings": True,
        "model.mixer_options": ("positional_width=5", "frequency=10", "positions_lr=0"),
        "model.block_options": _HYENA_BLOCK,
        "data.task": "tokens",
        "data.generator": "associative_recall:vocabulary=30,seq_len=131072",
        "data.train_examples": 4000,
        "data.validation_examples": 500,
        "train.batch_size": 16,
        "train.steps": 50_000,
        "train.learning_rate": 5e-4,
        "train.warmup_ratio": 0.05,
        "train.adam_beta2": 0.98,
    },
    # HGRN2, arXiv:2404.07904, LRA ListOps (60.52); OpenNLPLab/lra at dd871ef6, run_lra.py: 5 x 64, state of 4 a head,
    # batch 128, rate 5e-4, 50k steps; 2000 trees held out. Ours: ever fresh trees, not 96,000; it reads from left to
    # right and answers at the last bracket (there both ways, and the mean of all places); MLP; the inclusive sum of
    # the lower bounds (there the exclusive one, which is the same at the start).
    "paper-lra-listops": {
        "model.name": "hgrn2",
        "model.hidden_size": 64,
        "model.num_hidden_layers": 5,
        "model.expand_ratio": 4,
        "model.intermediate_size": 128,
        "model.mixer_options": (*_HGRU2, "bias=true"),
        "data.task": "tokens",
        "data.generator": "listops",
        "data.validation_examples": 2000,
        "train.batch_size": 128,
        "train.steps": 50_000,
        "train.learning_rate": 5e-4,
    },
    # The same, Pathfinder (93.95): 6 x 128, state of 2 a head, images as grids read in four directions at once, rate
    # 2e-3, 500k steps. Ours: batch (not in the script's table), MLP, the sum of the lower bounds as above.
    "paper-lra-pathfinder": {
        "model.name": "hgrn2",
        "model.hidden_size": 128,
        "model.num_hidden_layers": 6,
        "model.expand_ratio": 2,
        "model.intermediate_size": 256,
        "model.direction": "2d_parallel",
        "model.mixer_options": _HGRU2,
        "data.task": "classify",
        "data.as_grid": True,
        "train.batch_size": 64,
        "train.steps": 500_000,
        "train.learning_rate": 2e-3,
    },
    # MQAR, arXiv:2312.04927, Figure 2 at (128, 8), width 128; zoology at d88d6f5: 2 layers without MLPs, vocabulary
    # 8192, 100,000 examples, 3000 held out, batch 256, 64 epochs, weight decay 0.1, rates of 1e-4 ... 1e-2 of which
    # this is the third; HGRN2's authors' copy of it (at 2af2135f): state of min(D, 128) a head.
    "paper-mqar-128": {
        "model.name": "hgrn2",
        "model.hidden_size": 128,
        "model.num_hidden_layers": 2,
        "model.expand_ratio": 128,
        "model.mlp": "none",
        "model.mixer_options": (*_HGRU2, "bias=true"),
        "data.task": "tokens",
        "data.generator": "mqar:seq_len=128,num_pairs=8",
        "data.train_examples": 100_000,
        "data.validation_examples": 3000,
        "train.batch_size": 256,
        "train.steps": 25_000,
        "train.learning_rate": 2.15e-3,
    },
    # MAD, arXiv:2403.17844, baseline of in-context recall; mad-lab at 0f49a45: width 128, twice a mixer and a SwiGLU,
    # 12,800 examples, 1280 held out, batch 128, 200 epochs, the middle of the rates tried, cosine to 1e-6, seed 12345.
    # Its other tasks are other generators: --generator compression, and so on.
    "paper-mad": {
        "model.name": "hgrn2",
        "model.hidden_size": 128,
        "model.num_hidden_layers": 2,
        "model.expand_ratio": 64,
        "data.task": "tokens",
        "data.generator": "in_context_recall",
        "data.train_examples": 12_800,
        "data.validation_examples": 1280,
        "train.batch_size": 128,
        "train.steps": 20_000,
        "train.learning_rate": 5e-4,
        "train.min_lr_ratio": 2e-3,
        "train.seed": 12345,
    },
    # Mamba, arXiv:2312.00752, Table 1: selective copying of 16 among 4096 tokens, 2 layers of width 64, 400k steps of
    # 64 examples, rate 1e-4.
    "paper-selective-copying": {
        "model.name": "hgrn2",
        "model.hidden_size": 64,
        "model.num_hidden_layers": 2,
        "data.task": "tokens",
        "data.generator": "selective_copying:rules=mamba,seq_len=4096",
        "train.batch_size": 64,
        "train.steps": 400_000,
        "train.learning_rate": 1e-4,
    },
}
PRESETS = USUAL | PAPERS

_WIKITEXT = "WikiText-103: --data wiki.train.raw --validation-data wiki.valid.raw"
_DATA = {
    "paper-hgrn-wikitext103": _WIKITEXT,
    "paper-hgrn2-wikitext103": _WIKITEXT,
    "paper-hyena-wikitext103": _WIKITEXT,
    "paper-hyenadna-tiny": "the human genome, hg38: --data hg38.fa, or other DNA in FASTA",
    "paper-lra-pathfinder": "Pathfinder's images: --data FILE.npz, written by longstream.tasks.pathfinder",
}


def missing_data(preset: str) -> str:
    """What to say where a run has no data: which files a preset wants."""
    if preset in _DATA:
        return f"train: --preset {preset} trains on {_DATA[preset]}"
    return "train: nothing to train on: give --data FILE..., or --data builtin"
