"""Text from a model, whole or as it is made."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from longstream.baselines.language import context_limit
from longstream.stream import kept_step
from longstream.train.rundir import quiet_transformers
from longstream.train.tokenizer import Tokenizer

# Outside of these a temperature is greedy or uniform in all but name, and float32 logits divided by it overflow or end
# as 0 or NaN.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


@dataclass
class Speed:
    """When the tokens of a text came, in seconds."""

    times: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float | None:
        """After the second token: before it the prompt was read and the step was compiled. None for less than 3."""
        new = len(self.times) - 2
        return None if new < 1 else new / (self.times[-1] - self.times[1])

    def describe(self, model: Any, bandwidth: float) -> str:
        """Of a model that has written, against what this machine copies: bytes a second, read and written."""
        rate = self.tokens_per_second
        if rate is None:
            return f"{len(self.times)} tokens are too few to time"
        nbytes, step = weights_read(model)
        return (
            f"{len(self.times):,} tokens, {rate:,.1f} a second; {nbytes / 1e6:,.1f} MB of weights read for each"
            f" ({step}): {rate * nbytes / bandwidth:.0%} of {bandwidth / 1e9:.1f} GB/s, which memory copies now, both"
            " ways counted"
        )


def weights_read(model: Any) -> tuple[int, str]:
    """Bytes of weights that a model reads for a token, and which step that is."""
    if getattr(model, "decode_why_not", "no such step") is None:
        compiled = kept_step(model, model.decode_weights).compiled
        assert compiled is not None
        return compiled.weight_bytes, f"native step, {compiled.weights}"
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    read = {id(p): p.nbytes for p in model.parameters()}
    if head is not embeddings:
        del read[id(embeddings)]  # of which a token is one row
    return sum(read.values()), "the model's own step"


def use_weights(model: Any, weights: str) -> None:
    """Have a model of longstream.hf write by weights of another kind.

    Raises:
        ValueError: it has no native step.
    """
    if weights == "float32":
        return
    why = "it is not a model of longstream"
    if hasattr(model, "decode_weights"):
        model.decode_weights = weights
        model.eval()
        why = model.decode_why_not
    if why is not None:
        raise ValueError(f"--weights {weights} needs the native step: {why}")


class TextStreamer(BaseStreamer):
    """Hands new text to ``write`` token by token, whole characters only; bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object], speed: Speed | None = None) -> None:
        self.tokenizer, self.write, self.speed = tokenizer, write, speed
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
        if self.speed is not None:
            self.speed.times.append(time.perf_counter())
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


class StopAt(StoppingCriteria):
    """Ends each text that has come to hold one of some byte strings."""

    def __init__(self, tokenizer: Tokenizer, until: Sequence[bytes], width: int) -> None:
        self.tokenizer, self.until, self.width = tokenizer, until, width
        # A token stands for a byte or more, but for the first of a text and boundaries: some more are looked at.
        self.reach = max(map(len, until)) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        recent = input_ids[:, max(self.width, input_ids.shape[1] - self.reach) :].tolist()
        texts = map(self.tokenizer.decode, recent)
        found = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(found, device=input_ids.device)


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
    speed: Speed | None = None,
) -> bytes:
    """What the model writes after ``prompt``, by transformers' ``generate``; torch's random state is left as it was.

    Args:
        max_new_tokens: >= 1.
        temperature:    from 0.001 to 1000, or 0 for the likeliest token each time.
        top_k, top_p:   restrict sampling to the likeliest tokens; 0 and 1.0 do not.
        seed:           64 bits.
        may_end:        stop where the model ends the document; False never lets it.
        write:          called with each piece of text as it is made.
        speed:          notes when, if there is a write.
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
    (text,) = continue_texts(
        model,
        tokenizer,
        [[tokenizer.boundary_id, *tokenizer.encode(prompt).tolist()]],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        suppress_tokens=None if may_end else [tokenizer.boundary_id],
        streamer=None if write is None else TextStreamer(tokenizer, write, speed),
    )
    return text


def continue_texts(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    until: Sequence[bytes] = (),
    **options: Any,
) -> list[bytes]:
    """What the model writes after each of some prompts, in one batch.

    Args:
        prompts: ids, the boundary first; shorter ones are filled up in front, which no model here takes notice of.
        until:   a text ends where it holds one of these, which it keeps, and perhaps some bytes of the same token.
        options: further arguments of transformers' ``generate``. The others are described at `sample_text`.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.boundary_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if until:
        options["stopping_criteria"] = StoppingCriteriaList([StopAt(tokenizer, until, width)])
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.boundary_id,
            pad_token_id=tokenizer.boundary_id,
            do_sample=temperature > 0,
            **options,
        )
    model.train(was_training)
    return [tokenizer.decode(row) for row in out[:, width:].tolist()]
