"""The contestants of training: a language model of HGRN2 and transformers' Llama with as many parameters.

A call is a whole step: forward, cross-entropy, backward and AdamW, on B sequences of T bytes. The check compares loss
and gradients with those of the same model in float64, on the first CHECKED tokens of one sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream import HGRN2Config, LanguageModel, ModelConfig
from longstream.bench import peers
from longstream.bench.limits import FLOPS
from longstream.bench.measure import Case, Contestant, Entry, Skip, relative_error
from longstream.ops import available_backends

WIDTH, DEPTH, VOCABULARY = 256, 6, 256  # of bytes
MIDDLE = 688  # of the MLP: 8/3 of the width, to a multiple of 16
CHECKED = 1024
LONGEST = 8192  # for a backend that is not the first, and for attention


def entry(case: Case, model: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor]) -> Entry:
    """A training step of a model."""
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (case.B, case.T + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
        return F.cross_entropy(logits(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def results(model: nn.Module) -> list[Tensor]:
        loss = loss_of(model, ids[:1, : CHECKED + 1])
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    def check() -> float:
        return relative_error(results(model), results(copy.deepcopy(model).double()))

    def run() -> None:
        loss_of(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    count = sum(p.numel() for p in model.parameters())
    products = count - VOCABULARY * WIDTH  # embeddings are looked up, not multiplied with
    oracle = f"itself in float64, loss and gradients of {min(case.T, CHECKED):,} tokens"
    return Entry(run, check, oracle, count, work=6.0 * products * case.B * case.T, share_of=FLOPS)


def our_model(backend: str) -> LanguageModel:
    """HGRN2: 6 layers, 256 wide."""
    config = ModelConfig(
        hidden_size=WIDTH,
        num_layers=DEPTH,
        intermediate_size=MIDDLE,
        vocab_size=VOCABULARY,
        mixer=HGRN2Config(backend=backend),
    )
    return LanguageModel(config)


def _ours(backend: str) -> Callable[[Case], Entry]:
    def make(case: Case) -> Entry:
        backends = available_backends("gla")
        if backends[backend] is not None:
            raise Skip(f"backend {backend}: {backends[backend]}")
        if backend == "reference":
            raise Skip("left out: a Python loop over tokens, kept for checks")
        if case.T > LONGEST and backend != next(name for name, why in backends.items() if why is None):
            raise Skip(f"left out past {LONGEST:,} tokens")
        torch.manual_seed(0)
        return entry(case, our_model(backend), lambda model, ids: model(ids)[0])

    return make


def _llama(case: Case) -> Entry:
    transformers = peers.load("transformers")
    if case.T > LONGEST:
        raise Skip(f"left out past {LONGEST:,} tokens")
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=MIDDLE,
        vocab_size=VOCABULARY,
        max_position_embeddings=LONGEST,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return entry(case, transformers.LlamaForCausalLM(config), lambda model, ids: model(ids).logits)


def contestants() -> list[Contestant]:
    """Ours with every backend, and Llama."""
    ours = [Contestant(f"HGRN2 {backend}", "longstream", _ours(backend)) for backend in available_backends("gla")]
    return [*ours, Contestant("Llama", "transformers", _llama)]
