"""The mixers that the layers are compared with, all D wide.

Where a mixer's own size can be chosen, it is the one whose parameters come nearest to the 4 D^2 of HGRN2 and attention;
the rows say how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from longstream.bench import peers
from longstream.bench.layers import D, Mixer, entry, projections
from longstream.bench.measure import Case, Contestant, Entry


class _Attention(nn.Module):
    """Causal attention of 4 heads with a cache of keys and values that has room for one token more."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)

    def heads(self, x: Tensor) -> list[Tensor]:
        return [y.unflatten(-1, (4, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def prefill(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, k, v = self.heads(F.pad(x, (0, 0, 0, 1)))
        return k.contiguous(), v.contiguous()

    def step(self, x: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.heads(x)
        cache[0][:, :, -1:], cache[1][:, :, -1:] = k, v
        return self.out(F.scaled_dot_product_attention(q, *cache).transpose(1, 2).flatten(2))


def _attention(case: Case) -> Mixer:
    return Mixer(_Attention(), lambda m, x: m(x), lambda m, x: m.prefill(x), lambda m, x, cache: m.step(x, cache))


def _torch_rnn(kind: Callable[..., nn.Module]) -> Callable[[Case], Mixer]:
    def make(case: Case) -> Mixer:
        return Mixer(
            kind(D, D, batch_first=True), lambda m, x: m(x)[0], lambda m, x: m(x)[1], lambda m, x, h: m(x, h)[0]
        )

    return make


def _min_gru(case: Case) -> Mixer:
    module = peers.load("minGRU_pytorch.minGRU", "minGRU-pytorch").minGRU(D, expansion_factor=1.25)

    def prefill(m: Any, x: Tensor) -> Tensor:
        return m(x, return_next_prev_hidden=True)[1]

    return Mixer(module, lambda m, x: m(x), prefill, lambda m, x, h: m(x, h))


def _quiet(load: Callable[[], tuple[nn.Module, Any]]) -> tuple[nn.Module, Any]:
    """transformers says for each kernel that it is the slow one, which the tables show."""
    log = peers.load("transformers").utils.logging
    usual = log.get_verbosity()
    log.set_verbosity_error()
    try:
        return load()
    finally:
        log.set_verbosity(usual)


def _transformers(load: Callable[[], tuple[nn.Module, Any]], cache_name: str) -> Callable[[Case], Mixer]:
    """A mixer of transformers, with its cache for the steps."""

    def make(case: Case) -> Mixer:
        module, config = _quiet(load)

        def call(m: Any, x: Tensor, cache: Any = None) -> Tensor:
            out = m(x) if cache is None else m(x, **{cache_name: cache})
            return out[0] if isinstance(out, tuple) else out

        def prefill(m: Any, x: Tensor) -> Any:
            cache = peers.load("transformers").DynamicCache(config=config)
            call(m, x, cache)
            return cache

        return Mixer(module.train(case.mode == "fwd+bwd"), call, prefill, call)

    return make


def _mamba() -> tuple[nn.Module, Any]:
    peers.load("mambapy")
    module = peers.load("transformers.models.mamba.modeling_mamba")
    config = peers.load("transformers").MambaConfig(hidden_size=D, expand=1, use_mambapy=True, num_hidden_layers=1)
    return module.MambaMixer(config, 0), config


def _mamba2() -> tuple[nn.Module, Any]:
    module = peers.load("transformers.models.mamba2.modeling_mamba2")
    sizes = {"expand": 1, "num_heads": 4, "head_dim": 64, "n_groups": 1, "state_size": 128, "chunk_size": 64}
    config = peers.load("transformers").Mamba2Config(hidden_size=D, num_hidden_layers=1, **sizes)
    return module.Mamba2Mixer(config, 0), config


def _gated_delta_net() -> tuple[nn.Module, Any]:
    module = peers.load("transformers.models.qwen3_next.modeling_qwen3_next")
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    sizes = {"linear_key_head_dim": 64, "linear_value_head_dim": 128}
    kinds = {"layer_types": ["linear_attention"], "num_hidden_layers": 1}
    config = peers.load("transformers").Qwen3NextConfig(hidden_size=D, **heads, **sizes, **kinds)
    return module.Qwen3NextGatedDeltaNet(config, 0), config


def _mlstm(case: Case) -> Mixer:
    """mLSTM as in xLSTM: projections to q, k, v, two gates a head, and the chunkwise kernel in plain torch."""
    backend = peers.load("mlstm_kernels.torch.backend_module", "mlstm_kernels")
    names = {"chunkwise_kernel": "chunkwise--native_autograd", "sequence_kernel": "native_sequence__native"}
    config = backend.mLSTMBackendConfig(
        **names, step_kernel="native", chunk_size=64, autocast_kernel_dtype="float32", mode="train"
    )

    class MLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
            self.gates = nn.Linear(D, 4)  # of 2 heads
            self.kernel = backend.mLSTMBackend(config)

        def mix(self, x: Tensor, *state: Tensor, mode: str) -> tuple[Tensor, tuple[Tensor, ...]]:
            q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
            i, f = self.gates(x).transpose(1, 2).chunk(2, 1)
            h, state = self.kernel(q, k, v, i, f, *state, mode=mode, return_last_states=True)
            return self.out(h.transpose(1, 2).flatten(2)), state

        def forward(self, x: Tensor) -> Tensor:
            T = x.shape[1]  # the chunkwise kernel takes multiples of 64 tokens
            return self.mix(F.pad(x, (0, 0, 0, -T % 64)), mode="train")[0][:, :T]

    def prefill(m: Any, x: Tensor) -> Any:
        return m.mix(x, mode="inference")[1]

    return Mixer(MLSTM(), lambda m, x: m(x), prefill, lambda m, x, s: m.mix(x, *s, mode="inference")[0])


def other_contestants() -> list[Contestant]:
    """The projections of ours, and the mixers of other packages."""

    def ready(make: Callable[[Case], Mixer]) -> Callable[[Case], Entry]:
        return lambda case: entry(case, make)

    return [
        Contestant("projections alone", "torch", projections, ("fwd", "fwd+bwd")),
        Contestant("SDPA attention", "torch", ready(_attention)),
        Contestant("nn.GRU", "torch", ready(_torch_rnn(nn.GRU))),
        Contestant("nn.LSTM", "torch", ready(_torch_rnn(nn.LSTM))),
        Contestant("minGRU-pytorch", "minGRU-pytorch", ready(_min_gru)),
        Contestant("Mamba, mambapy", "transformers", ready(_transformers(_mamba, "cache_params"))),
        Contestant("Mamba2", "transformers", ready(_transformers(_mamba2, "cache_params"))),
        Contestant("GatedDeltaNet", "transformers", ready(_transformers(_gated_delta_net, "cache_params"))),
        Contestant("mLSTM, native chunkwise", "mlstm_kernels", ready(_mlstm)),
    ]
