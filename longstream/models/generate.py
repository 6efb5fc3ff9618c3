"""Writing with a language model: prefill once in parallel, then one step a token in constant memory.

`longstream.stream.generate` does the same by the native step, for as many prompts as there are.
"""

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from longstream.models.backbone import Backbone, check_goes_on
from longstream.models.decode import longest
from longstream.models.heads import LanguageModel, check_ids


class Sampler:
    """How tokens are drawn from logits.

    Args:
        temperature: >= 0, divides the logits; 0 takes the likeliest token.
        top_k:       keep the k likeliest tokens.
        top_p:       in (0, 1]: keep the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2019,
                     arXiv:1904.09751). After top_k, if both are given.
        seed:        of `generator`; None draws one.
    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
    ):
        if not temperature >= 0:
            raise ValueError(f"generate: temperature must be >= 0, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"generate: top_k must be >= 1, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"generate: top_p must be in (0, 1], got {top_p}")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.seed = int(torch.empty((), dtype=torch.int64).random_()) if seed is None else seed

    def generator(self, row: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Of a text's own numbers, seeded with (seed, row): what it becomes does not depend on the other texts."""
        return torch.Generator(device).manual_seed(hash((self.seed, row)) % 2**63)

    def draw(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """(B, vocabulary) -> (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # With the largest at 0 no temperature, however small, makes an infinity.
        logits, order = logits.float().sort(dim=-1, descending=True)
        logits = (logits - logits[:, :1]) / self.temperature
        probabilities = logits.softmax(-1)
        kept = torch.ones_like(probabilities, dtype=torch.bool)
        if self.top_k is not None:
            kept[:, self.top_k :] = False
            probabilities = (probabilities * kept) / (probabilities * kept).sum(-1, keepdim=True)
        if self.top_p is not None:
            kept &= probabilities.cumsum(-1) - probabilities < self.top_p  # the first to reach p is kept too
        probabilities = probabilities * kept
        drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(probabilities, generators, strict=True)]
        return order.gather(-1, torch.stack(drawn))[:, 0]


def stream(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_token_id: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue prompts of any lengths in one batch; yields a token for each row as soon as it is made.

    Args:
        model:          `LanguageModel`.
        prompts:        token ids, at least one each.
        max_new_tokens: >= 0, for each row.
        temperature, top_k, top_p, seed: see `Sampler`.
        eos_token_id:   a row ends after this token.
    Yields:
        One list for each new position: the row's token, or None where the row has ended.
    Raises:
        ValueError: an empty prompt, ids out of range, or an option out of its range.
        RuntimeError: a layer is not causal.
    """
    texts = read_prompts(model, prompts, max_new_tokens)
    sampler = Sampler(temperature, top_k, top_p, seed)
    device = model.embeddings.weight.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long, device=device)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    generators = [sampler.generator(row, device) for row in range(len(texts))]
    return _stream(model, ids, lengths, max_new_tokens, sampler, generators, eos_token_id)


def generate(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options) -> list[list[int]]:
    """The new tokens of each prompt, eos_token_id included; arguments and errors of `stream`."""
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in stream(model, prompts, max_new_tokens, **options):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return rows


@torch.no_grad()
def _stream(
    model: LanguageModel,
    ids: Tensor,
    lengths: Tensor,
    max_new_tokens: int,
    sampler: Sampler,
    generators: list[torch.Generator],
    eos_token_id: int | None,
) -> Iterator[list[int | None]]:
    if max_new_tokens == 0:
        return
    rows = torch.arange(len(ids), device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    y, state = model.backbone(model.embeddings(ids), mask=mask)
    logits = model.lm_head(y[rows, lengths - 1])  # the head only where a token is drawn
    alive = [True] * len(ids)
    for made in range(max_new_tokens):
        token = sampler.draw(logits[:, : model.vocab_size], generators)
        now = token.tolist()
        yield [t if live else None for t, live in zip(now, alive, strict=True)]
        alive = [live and t != eos_token_id for t, live in zip(now, alive, strict=True)]
        if made + 1 == max_new_tokens or not any(alive):
            return
        logits, state = model.step(token, state)


def check_length(who: str, backbone: Backbone, prompt: int, max_new_tokens: int) -> None:
    """Refuse beforehand what would run into the longest sequence that a model with Hyena takes."""
    limit = longest(backbone)
    if limit is not None and prompt + max(max_new_tokens - 1, 0) > limit:  # the last token is not fed back
        raise ValueError(
            f"{who}: prompt and new tokens must fit into max_seq_len={limit}, got {prompt} + {max_new_tokens}; shorten "
            "them, or build the model with a larger max_seq_len"
        )


def read_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """The prompts as lists, once they can be continued so far.

    Raises:
        ValueError: an empty prompt, ids out of range, or more tokens than the model takes.
        RuntimeError: a layer is not causal.
    """
    check_goes_on("generate", model)
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be >= 0, got {max_new_tokens}")
    texts = []
    for i, prompt in enumerate(prompts):
        try:
            texts.append([operator.index(token) for token in prompt])
        except TypeError:
            raise ValueError(f"generate: prompts[{i}] must be a sequence of token ids, got {prompt!r}") from None
        if not texts[i]:
            raise ValueError(f"generate: prompts[{i}] must have at least one token, got none")
    if not texts:
        raise ValueError("generate: prompts must hold at least one prompt, got none")
    check_ids("generate", torch.tensor([token for text in texts for token in text])[None], model.vocab_size)
    check_length("generate", model.backbone, max(map(len, texts)), max_new_tokens)
    return texts
