"""Text by the native step: the same tokens as the model's own loop writes, whatever is written beside it."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import longstream
from longstream.models import AttentionConfig, HGRN2Config, HGRNConfig, HyenaConfig, LanguageModel, ModelConfig
from longstream.models import generate as eager_generate
from longstream.stream import PrefixCache, TextEngine, forget_step, generate, kept_step

HYENA = HyenaConfig(max_seq_len=64, filter_width=8, positional_width=5)
MIXERS: dict[str, dict[str, Any]] = {
    "hgrn2": {"mixer": HGRN2Config(expand_ratio=8, conv_size=4)},
    "hgrn": {"mixer": HGRNConfig(expand_ratio=2)},
    "hyena": {"mixer": HYENA, "vocab_multiple": 8, "mlp": "gelu", "norm": "layer"},
    "mixture": {
        "num_layers": 3,
        "layers": (HGRN2Config(expand_ratio=8), HYENA, AttentionConfig(num_heads=2, window_size=5)),
    },
}
PROMPTS = [[1, 2, 3, 4, 5], [7], [3, 9], [4] * 9, [5, 6, 7, 8], [2], [2, 1], [11, 12, 0]]
SAMPLING = {"temperature": 0.9, "top_k": 9, "top_p": 0.95, "seed": 5}


def make(kind: str = "hgrn2", **fields: Any) -> LanguageModel:
    torch.manual_seed(1)
    config: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "vocab_size": 13, "initializer_range": 0.5}
    return LanguageModel(ModelConfig(**(config | MIXERS[kind] | fields))).eval()


@pytest.fixture(params=MIXERS)
def model(request) -> LanguageModel:
    return make(request.param)


@pytest.mark.parametrize("options", [{"temperature": 0}, SAMPLING], ids=["greedy", "sampling"])
def test_what_the_models_own_loop_writes(model: LanguageModel, options: dict):
    expected = eager_generate(model, PROMPTS, 20, **options)
    assert generate(model, PROMPTS, 20, **options) == expected
    assert generate(model, PROMPTS, 20, backend="eager", **options) == expected
    assert TextEngine(model).backend == "native"


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 50])
def test_a_text_does_not_depend_on_the_rows(rows: int):
    """Ends at different places, so that rows take the next prompts at different times."""
    model = make()
    free = generate(model, PROMPTS, 16, **SAMPLING)
    eos = free[0][3]
    assert len({text.index(eos) for text in free if eos in text}) > 1
    expected = [text[: text.index(eos) + 1] if eos in text else text for text in free]
    engine = TextEngine(model, batch_size=rows)
    assert [*engine.each(PROMPTS, 16, eos_token_id=eos, **SAMPLING)] == expected
    assert engine.tokens == sum(map(len, expected))
    alone = [
        generate(model, [[0]] * row + [prompt], 16, eos_token_id=eos, **SAMPLING)[row]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert alone == expected


def test_a_free_row_takes_the_next_prompt():
    """Eight texts of 10 tokens over two rows: 9 steps for every two, and none for nobody."""
    engine = TextEngine(make(), batch_size=2)
    assert [len(text) for text in engine.each(PROMPTS, 10, temperature=0)] == [10] * 8
    assert engine.steps == 4 * 9
    texts = [*engine.each(PROMPTS[:3], 10, temperature=0)]
    assert engine.steps == 4 * 9 + 2 * 9
    assert len(texts) == 3


def test_texts_come_in_order_and_as_soon_as_they_are_whole():
    engine = TextEngine(make(), batch_size=2)
    each = engine.each(PROMPTS, 10, temperature=0)
    assert len(next(each)) == 10
    assert engine.steps == 9  # the other six are not begun
    order = [
        (number, last) for number, _, last in TextEngine(make(), batch_size=8).each_token(PROMPTS, 2, temperature=0)
    ]
    assert order == [(n, False) for n in range(8)] + [(n, True) for n in range(8)]


def test_kinds_of_weights():
    """They read fewer bytes, and mostly agree."""
    model = make(initializer_range=0.3, hidden_size=64)
    engines = {kind: TextEngine(model, weights=kind) for kind in ("float32", "bfloat16", "int8")}
    sizes = [engine.weight_bytes for engine in engines.values()]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * 1.4 * sizes[2]
    texts = {kind: [*engine.each(PROMPTS, 4, temperature=0)] for kind, engine in engines.items()}
    same = [a == b for a, b in zip(texts["float32"], texts["bfloat16"], strict=True)]
    assert sum(same) >= 6


def test_what_has_no_native_step_is_written_eagerly():
    model = make().double()
    engine = TextEngine(model)
    assert engine.backend == "eager"
    assert "float32" in engine.why_not["native"]
    assert [*engine.each(PROMPTS, 9, temperature=0)] == eager_generate(model, PROMPTS, 9, temperature=0)
    with pytest.raises(RuntimeError, match=r"generate: backend 'native' cannot run this model: .*float32"):
        TextEngine(model, backend="native")
    with pytest.raises(RuntimeError, match=r"weights 'int8' are of the native backend"):
        TextEngine(model, weights="int8")
    with pytest.raises(RuntimeError, match=r"weights 'int8' are of the native backend"):
        TextEngine(make(), weights="int8", backend="eager")


def test_dropout_is_off_and_training_mode_stays():
    model = make(dropout=0.5, embed_dropout=0.5)
    expected = generate(model, PROMPTS, 9, temperature=0)
    model.train()
    assert generate(model, PROMPTS, 9, temperature=0) == expected
    assert all(module.training for module in model.modules())


def test_bad_input(model: LanguageModel):
    for wrong, says in (
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"top_k": 0}, "top_k must be >= 1"),
        ({"top_p": 2.0}, "top_p must be in"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"weights": "int4"}, "weights must be one of"),
        ({"backend": "fast"}, "backend must be one of"),
    ):
        with pytest.raises(ValueError, match=says):
            generate(model, PROMPTS, 3, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one prompt"):
        generate(model, [], 3)
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 13\), got 13"):
        generate(model, [[1], [13]], 3)
    with pytest.raises(TypeError, match="model must be a longstream language model, got Linear"):
        generate(nn.Linear(2, 2), PROMPTS, 3)
    with pytest.raises(TypeError, match="prefix must be a PrefixCache, a State or None, got list"):
        generate(model, PROMPTS, 3, prefix=[1, 2])  # type: ignore[arg-type]
    assert generate(model, PROMPTS, 0) == [[] for _ in PROMPTS]
    assert longstream.generate is generate


def test_hyenas_length_is_told_beforehand():
    model = make("hyena")
    with pytest.raises(ValueError, match=r"must fit into max_seq_len=64, got 5 \+ 61"):
        generate(model, [[1] * 5], 61)
    assert generate(model, [[1] * 5], 60, temperature=0) == eager_generate(model, [[1] * 5], 60, temperature=0)
    state = PrefixCache(model).state_of([1, 2, 3])
    with pytest.raises(ValueError, match=r"must fit into max_seq_len=64, got 8 \+ 60"):
        generate(model, [[1] * 5], 60, prefix=state)


# The compiled step is kept, and not for too long.


def test_the_packed_weights_are_kept_until_the_model_changes():
    model: Any = make()
    kept = kept_step(model)
    generate(model, PROMPTS, 3)
    assert kept_step(model) is kept
    changes: list = [
        lambda: model.lm_head.weight.mul_(1.5),
        lambda: model.backbone.layers[0].mlp.gate_proj.weight.data.add_(0.1),  # torch counts no version of it
        lambda: setattr(model.lm_head, "weight", nn.Parameter(model.lm_head.weight * 2)),
        lambda: setattr(model.backbone.layers[1].mlp, "gate_proj", nn.Linear(16, 256, bias=False)),
    ]
    for change in changes:
        before = kept_step(model)
        with torch.no_grad():
            change()
        assert kept_step(model) is not before
        assert generate(model, PROMPTS, 9, temperature=0) == eager_generate(model, PROMPTS, 9, temperature=0)
    forget_step(model)
    assert kept_step(model).is_current()


def test_a_way_of_decoding_is_a_change():
    from longstream.models import distill, set_decode

    model = make("hyena")
    expected = generate(model, PROMPTS, 9, temperature=0)
    distill(model, 16)
    assert generate(model, PROMPTS, 9, temperature=0) == eager_generate(model, PROMPTS, 9, temperature=0)
    set_decode(model, "tiled")
    assert generate(model, PROMPTS, 9, temperature=0) == expected


def test_hooks_and_other_embeddings_are_not_gone_around():
    model = make()
    seen = []
    hook = model.backbone.layers[0].register_forward_hook(lambda *args: seen.append(1))
    engine = TextEngine(model)
    assert "hooks" in engine.why_not["native"]
    seen.clear()
    assert len(next(engine.each([[1]], 3))) == len(seen)
    hook.remove()
    assert TextEngine(model).backend == "native"

    class Louder(nn.Embedding):
        def forward(self, input):
            return 2 * super().forward(input)

    louder = Louder(13, 16)
    louder.weight = model.embeddings.weight
    model.embeddings = louder
    assert "Louder" in TextEngine(model).why_not["native"]
    assert generate(model, PROMPTS, 9, temperature=0) == eager_generate(model, PROMPTS, 9, temperature=0)


def test_what_is_kept_goes_with_the_model():
    import gc
    import weakref

    model = make()
    generate(model, PROMPTS, 3)
    gone = weakref.ref(model.backbone)
    del model
    gc.collect()
    assert gone() is None


def test_texts_of_one_engine_in_turn():
    model = make()
    engine = TextEngine(model)
    first, second = (engine.each_token([prompt], 9, temperature=0) for prompt in PROMPTS[:2])
    made = [*zip(first, second, strict=True)]
    assert [[token for _, token, _ in text] for text in zip(*made, strict=True)] == eager_generate(
        model, PROMPTS[:2], 9, temperature=0
    )


def test_prefixes_of_other_weights_are_refused():
    model, other, twin = make(), make(initializer_range=0.4), make()
    other.load_state_dict({name: tensor + 0.1 for name, tensor in model.state_dict().items()})
    with pytest.raises(ValueError, match="prefix must be a PrefixCache of this model"):
        TextEngine(model, prefix=PrefixCache(other))
    cache = PrefixCache(twin)  # the same weights in other modules
    assert generate(model, PROMPTS, 5, temperature=0, prefix=cache) == generate(model, PROMPTS, 5, temperature=0)


def test_a_bias_that_was_not_there_is_seen():
    model = make()
    kept = kept_step(model)
    model.lm_head.bias = nn.Parameter(torch.arange(13.0))
    assert not kept.is_current(thorough=False)
    assert generate(model, PROMPTS, 5, temperature=0) == eager_generate(model, PROMPTS, 5, temperature=0)


def test_a_model_with_its_own_method_kept_on_it_is_freed():
    model = make()
    model.__dict__["original_forward"] = model.forward  # as packages do that wrap it
    generate(model, PROMPTS[:1], 2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
