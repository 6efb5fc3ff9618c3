"""Text by the native step: any number of prompts over a few rows, each row taking the next when its text has ended."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longstream.layers._options import check_integers, check_one_of
from longstream.models import State
from longstream.models.generate import Sampler, check_length, read_prompts
from longstream.stream.kept import as_language_model, kept_step
from longstream.stream.pack import check_weights
from longstream.stream.prefix import PrefixCache
from longstream.stream.stream import BACKENDS, Stream

Made = tuple[int, int, bool]  # number of the prompt, token, whether it is the last of its text
ROWS = 8  # that write at once unless told: the weights are then read once for 8 tokens


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_size: int = ROWS,
    weights: str = "float32",
    backend: str = "auto",
    threads: int | None = None,
    prefix: PrefixCache | State | None = None,
    **options: Any,
) -> list[list[int]]:
    """The new tokens of each prompt, in the order of the prompts.

    A text is the same whatever else is written beside it: prompts are read one by one, and the numbers of a row do not
    depend on the others.

    Args:
        model, batch_size, weights, backend, threads, prefix: see `TextEngine`.
        prompts, max_new_tokens, options: see `TextEngine.each_token`.
    """
    engine = TextEngine(model, batch_size=batch_size, weights=weights, backend=backend, threads=threads, prefix=prefix)
    return [*engine.each(prompts, max_new_tokens, **options)]


@dataclass
class _Text:
    """One text that is being written."""

    number: int
    prompt: list[int]
    generator: torch.Generator
    left: int  # tokens that may still come
    token: int = -1  # the last one


class TextEngine:
    """A language model that writes: at most ``batch_size`` texts at once, one token of each a step.

    A finished text's row takes the next prompt, which is read in parallel by the model itself; where there are no more,
    the rows become fewer. The native step has a packed copy of the model's weights, which is kept for the next engine
    until the model changes or is gone, or `longstream.stream.forget_step` is called. Where there is no native step (not
    float32, not on a CPU, a layer of another package), the model's own runs; `backend` and `why_not` say so.

    An engine steps with the weights that the model had when it was made: after training on, make a new one.

    Args:
        model:      `longstream.models.LanguageModel`, or a causal language model of longstream.hf.
        batch_size: rows, >= 1.
        weights:    of the native steps: "float32", "bfloat16" or "int8". Prompts are always read in float32.
        backend:    "auto", "native" or "eager".
        threads:    of a native step; None: 1 for small models, else torch's.
        prefix:     `PrefixCache`, from which every prompt takes what it begins with; or a `State` of one row that all
                    prompts go on from.
    Raises:
        ValueError, TypeError: an argument is not as above.    RuntimeError: the named backend cannot run this model.

    Attributes:
        steps, tokens: how many steps there were since the engine was made, and tokens in all texts.
        weight_bytes:  that a step reads.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int = ROWS,
        weights: str = "float32",
        backend: str = "auto",
        threads: int | None = None,
        prefix: PrefixCache | State | None = None,
    ):
        check_integers("generate", batch_size=(batch_size, 1))
        check_weights("generate", weights)
        check_one_of("generate", backend=(backend, BACKENDS))
        if prefix is not None and not isinstance(prefix, PrefixCache | State):
            raise TypeError(f"generate: prefix must be a PrefixCache, a State or None, got {type(prefix).__name__}")
        if isinstance(prefix, State) and prefix.batch_size != 1:
            raise ValueError(f"generate: prefix must be a state of one row, got {prefix.batch_size}; select one first")
        self.model, self.batch_size, self.prefix = as_language_model(model), batch_size, prefix
        if isinstance(prefix, PrefixCache) and not prefix.is_of(self.model):
            raise ValueError("generate: prefix must be a PrefixCache of this model, got one of other weights")
        self.steps = self.tokens = 0
        what: Any = self.model
        self.why_not: dict[str, str] = {}
        if backend != "eager":
            kept = kept_step(model, weights)
            what = kept.compiled or what
            if kept.why_not is not None:
                self.why_not["native"] = kept.why_not
                if backend == "native":
                    raise RuntimeError(f"generate: backend 'native' cannot run this model: {kept.why_not}")
        chosen = backend if what is not self.model else "eager"
        if chosen == "eager" and weights != "float32":
            raise RuntimeError(f"generate: weights {weights!r} are of the native backend: {self.why_not}")
        self._reader = Stream(what, weights=weights, backend=chosen, threads=threads)  # of prompts, one by one
        self._device = self.model.embeddings.weight.device
        self.backend, self.weight_bytes = self._reader.backend, self._reader.weight_bytes

    def each(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any) -> Iterator[list[int]]:
        """The new tokens of each prompt, in the order of the prompts, as soon as they are whole; see `each_token`."""
        made = self.each_token(prompts, max_new_tokens, **options)
        return _in_order(made) if max_new_tokens else iter([[] for _ in prompts])

    def each_token(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        eos_token_id: int | None = None,
    ) -> Iterator[Made]:
        """Every token when it is made: the number of its prompt, the token, and whether it is the last of its text.

        Args:
            prompts:        token ids, at least one each; what ``prefix`` as a state has seen is not among them.
            max_new_tokens: >= 0, of each.
            temperature, top_k, top_p, seed: of `longstream.models.generate.Sampler`; text i draws with (seed, i).
            eos_token_id:   a text ends after this token.
        Raises:
            ValueError: an empty prompt, ids out of range, too many for the model, or an option out of its range.
        """
        texts = read_prompts(self.model, prompts, max_new_tokens)
        sampler = Sampler(temperature, top_k, top_p, seed)
        if isinstance(self.prefix, State):
            seen = int(self.prefix.position[0])
            check_length("generate", self.model.backbone, seen + max(map(len, texts)), max_new_tokens)
        waiting = deque(
            _Text(i, text, sampler.generator(i, self._device), max_new_tokens) for i, text in enumerate(texts)
        )
        return self._write(waiting, sampler, eos_token_id) if max_new_tokens else iter(())

    def _write(self, waiting: deque[_Text], sampler: Sampler, eos_token_id: int | None) -> Iterator[Made]:
        rows: list[_Text] = []
        states: list[State] = []
        while waiting and len(rows) < self.batch_size:
            if (begun := (yield from self._begin(waiting, sampler, eos_token_id))) is not None:
                rows.append(begun[0])
                states.append(begun[1])
        if not rows:
            return
        stream = self._reader.select([0] * len(rows))
        stream.load(State.cat(states))
        states.clear()
        while rows:
            logits = stream.step(torch.tensor([text.token for text in rows], device=self._device))
            self.steps += 1
            yield from self._draw(rows, logits, sampler, eos_token_id)
            for row, text in enumerate(rows):
                if not text.left and (begun := (yield from self._begin(waiting, sampler, eos_token_id))) is not None:
                    rows[row] = begun[0]
                    stream.load(begun[1], [row])
            going_on = [row for row, text in enumerate(rows) if text.left]
            if going_on and len(going_on) < len(rows):
                stream = stream.select(going_on)
            rows = [rows[row] for row in going_on]

    def _begin(
        self, waiting: deque[_Text], sampler: Sampler, eos_token_id: int | None
    ) -> Generator[Made, None, tuple[_Text, State] | None]:
        """The next text that is not over with its first token, and the state after its prompt."""
        while waiting:
            text = waiting.popleft()
            made = self._draw([text], self._read(text.prompt)[None], sampler, eos_token_id)
            state = self._reader.state if text.left else None  # before others read prompts with this engine
            yield from made
            if state is not None:
                return text, state
        return None

    def _read(self, prompt: list[int]) -> Tensor:
        """The logits after a prompt."""
        reader, new = self._reader, prompt
        if isinstance(self.prefix, PrefixCache) and len(prompt) > 1:
            reader.load(self.prefix.state_of(prompt[:-1]))
            new = prompt[-1:]
        elif isinstance(self.prefix, State):
            reader.load(self.prefix)
        else:
            reader.reset()
        return reader.prefill(torch.tensor(new, device=self._device))

    def _draw(self, texts: list[_Text], logits: Tensor, sampler: Sampler, eos_token_id: int | None) -> list[Made]:
        drawn = sampler.draw(logits[:, : self.model.vocab_size], [text.generator for text in texts]).tolist()
        made = []
        for text, token in zip(texts, drawn, strict=True):
            text.token, text.left = token, 0 if token == eos_token_id else text.left - 1
            made.append((text.number, token, not text.left))
        self.tokens += len(made)
        return made


def _in_order(made: Iterator[Made]) -> Iterator[list[int]]:
    texts: dict[int, list[int]] = {}
    whole: set[int] = set()
    due = 0
    for number, token, is_last in made:
        texts.setdefault(number, []).append(token)
        if is_last:
            whole.add(number)
        while due in whole:
            yield texts.pop(due)
            due += 1
