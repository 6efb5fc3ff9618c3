"""Text from a model, whole or as it is made."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from longstream.baselines.language import context_limit
from longstream.train.rundir import quiet_transformers
from longstream.train.tokenizer import Tokenizer

# Outside of these a temperature is greedy or uniform in all but name, and float32 logits divided by it overflow or end
# as 0 or NaN.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class TextStreamer(BaseStreamer):
    """Hands new text to ``write`` token by token, whole characters only; bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object]) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[
            int
        ] = []  # of the token before the unwritten ones, for tokenizers whose tokens depend on it, and these
        self.known = 0  # how many of them are written
        self.in_prompt = True
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, value: torch.Tensor) -> None:
        if self.in_prompt:  # generate() shows the prompt first
            self.in_prompt = False
            return
        self.ids += value.flatten().tolist()
        new = self._new_bytes()
        if new and not new.endswith(REPLACEMENT):  # a tokenizer that decodes to text shows a cut character so
            self._emit(new)

    def end(self) -> None:
        self._emit(self._new_bytes())
        self.write(self.decoder.decode(b"", final=True))

    def _new_bytes(self) -> bytes:
        return self.tokenizer.decode(self.ids)[len(self.tokenizer.decode(self.ids[: self.known])) :]

    def _emit(self, new: bytes) -> None:
        self.write(self.decoder.decode(new))
        self.ids = self.ids[self.known :]
        self.known = len(self.ids)


def room_after(model: Any, tokenizer: Tokenizer, prompt: bytes) -> int:
    """How many tokens fit behind a prompt into the longest sequence of Hyena or Llama; else as good as any."""
    limit = context_limit(model)
    return sys.maxsize if limit is None else limit - len(tokenizer.encode(prompt))  # the last token is not fed back


def sample_text(
    model: Any,
    tokenizer: Tokenizer,
    prompt: bytes = b"",
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    may_end: bool = True,
    write: Callable[[str], object] | None = None,
) -> bytes:
    """What the model writes after ``prompt``, by transformers' ``generate``; torch's random state is left as it was.

    Args:
        max_new_tokens: >= 1.
        temperature:    from 0.001 to 1000, or 0 for the likeliest token each time.
        top_k, top_p:   restrict sampling to the likeliest tokens; 0 and 1.0 do not.
        seed:           64 bits.
        may_end:        stop where the model ends the document; False never lets it.
        write:          called with each piece of text as it is made.
    Raises:
        ValueError: an option out of its range.
    """
    if max_new_tokens < 1:
        raise ValueError(f"sample_text: max_new_tokens must be >= 1, got {max_new_tokens}")
    if temperature != 0 and not LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE:
        allowed = f"0 (greedy) or between {LEAST_TEMPERATURE:g} and {MOST_TEMPERATURE:g}"
        raise ValueError(f"sample_text: temperature must be {allowed}, got {temperature}")
    if top_k < 0:
        raise ValueError(f"sample_text: top_k must be >= 0, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"sample_text: top_p must be in (0, 1], got {top_p}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"sample_text: seed must fit 64 bits, got {seed}")
    ids = torch.tensor([[tokenizer.boundary_id, *tokenizer.encode(prompt).tolist()]], device=model.device)
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.boundary_id,
            pad_token_id=tokenizer.boundary_id,
            suppress_tokens=None if may_end else [tokenizer.boundary_id],
            streamer=None if write is None else TextStreamer(tokenizer, write),
            **options,
        )
    model.train(was_training)
    return tokenizer.decode(out[0, ids.shape[1] :].tolist())
