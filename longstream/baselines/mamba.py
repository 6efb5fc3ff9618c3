"""Mamba from a state: transformers' own classes start every call of more than one token from zero (5.23)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops import gated_scan

MOST_NUMBERS = 2**23  # of the states that are worked on at once, 32 MiB; a state for every token does not fit


@torch.no_grad()
def continue_mamba(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """Logits (B, T, vocabulary) of transformers' MambaForCausalLM for ids (B, T) behind what the cache has seen.

    transformers' forward is right for a text from its start, and for one token behind a cache; given more tokens it
    carries the convolution's inputs on but not the recurrent state, and its logits are wrong. This is the same
    network, for evaluation. `cache` is a transformers.DynamicCache of the model's configuration, which is carried on.
    """
    config, outs = model.config, []
    step = max(1, MOST_NUMBERS // (len(ids) * config.intermediate_size * config.state_size))
    for start in range(0, ids.shape[1], step):
        x = model.backbone.embeddings(ids[:, start : start + step])
        for block in model.backbone.layers:
            x = x + _mix(block.mixer, block.norm(x.to(block.norm.weight.dtype)), cache)
        outs.append(model.lm_head(model.backbone.norm_f(x)).float())
    return torch.cat(outs, dim=1)


def _mix(mixer: Any, x: Tensor, cache: Any) -> Tensor:
    """x (B, T, D) -> (B, T, D) through a MambaMixer, its state in the cache taken up and replaced.

    Gu & Dao 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t.
    """
    (B, T, _), K, layer = x.shape, mixer.conv_kernel_size, mixer.layer_idx
    before, h = cache.get_conv_state(layer, state_idx=0), cache.get_recurrent_state(layer, state_idx=0)
    u, z = mixer.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # (B, E, T) each
    before = u.new_zeros(B, u.shape[1], K) if before is None else before
    seen = torch.cat([before, u], dim=-1)
    u = mixer.act(F.conv1d(seen[..., 1:], mixer.conv1d.weight, mixer.conv1d.bias, groups=u.shape[1]))[..., -T:]
    u = u.transpose(1, 2)  # (B, T, E)
    N, R = mixer.ssm_state_size, mixer.time_step_rank
    dt, b, c = mixer.x_proj(u).float().split([R, N, N], dim=-1)
    dt = F.softplus(mixer.dt_proj(dt.to(u.dtype)).float())[..., None]  # (B, T, E, 1)
    log_forget = -dt * mixer.A_log.float().exp()  # (B, T, E, N)
    h, last = gated_scan(
        (dt * b[:, :, None] * u.float()[..., None]).flatten(2),
        log_forget.flatten(2),
        None if h is None else h.float().flatten(1),
    )
    y = (h.unflatten(-1, (-1, N)) @ c[..., None])[..., 0] + mixer.D.float() * u
    y = mixer.out_proj((y * F.silu(z.transpose(1, 2))).to(x.dtype))
    _put(cache, layer, seen[..., -K:], last.view(B, -1, N).to(x.dtype), K)
    return y


def _put(cache: Any, layer: int, conv: Tensor, h: Tensor, size: int) -> None:
    """Replace a layer's state in a cache, whose own update would append to the convolution's inputs."""
    if cache.get_conv_state(layer, state_idx=0) is None:
        cache.update_conv_state(conv, layer, conv_kernel_size=size)
    else:
        cache.get_conv_state(layer, state_idx=0).copy_(conv)
    cache.update_recurrent_state(h, layer)
