"""Models of the papers, by name; each says where its numbers are from."""

from longstream.models.config import HyenaConfig, ModelConfig

# HyenaDNA (Nguyen et al. 2023, arXiv:2306.15794): hidden size, layers and longest sequence of the checkpoints on the
# hub, LongSafari/hyenadna-*. Their own config.json decides; these are for a model of the same size.
HYENA_DNA = {
    "tiny-1k": (128, 2, 1024),
    "tiny-1k-d256": (256, 2, 1024),
    "tiny-16k-d128": (128, 2, 16384),
    "small-32k": (256, 4, 32768),
    "medium-160k": (256, 8, 160000),
    "medium-450k": (256, 8, 450000),
    "large-1m": (256, 8, 1000000),
}


def hyena_dna(size: str = "tiny-1k") -> ModelConfig:
    """HyenaDNA's language model: Hyena of order 2, LayerNorm, GELU MLP of 4 D, tied head, 12 tokens padded to 16.

    Source: the authors' configurations hg38 (hyena-dna at d553021): filters from 5 positional features, width 64,
    frequency 10, window shift 0.05, features not trained, learning rate of the filters 6e-4 without decay; longest
    sequence max_length + 2; residual projections drawn smaller by sqrt(2 layers).

    Raises:
        ValueError: an unknown size.
    """
    if size not in HYENA_DNA:
        raise ValueError(f"hyena_dna: size must be one of {list(HYENA_DNA)}, got {size!r}")
    hidden_size, num_layers, longest = HYENA_DNA[size]
    mixer = HyenaConfig(
        max_seq_len=longest + 2,
        positional_width=5,
        frequency=10.0,
        window_shift=0.05,
        filter_lr=6e-4,
        positions_lr=0.0,
    )
    return ModelConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        mixer=mixer,
        mlp="gelu",
        norm="layer",
        norm_eps=1e-5,
        embed_dropout=0.1,
        vocab_size=12,
        vocab_multiple=8,
        tie_embeddings=True,
        rescale_residual=True,
    )
