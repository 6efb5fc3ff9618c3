"""Single tokens behind a cache go through the native step, which changes no token; and only where it may."""

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from longstream.hf import RecurrentCache
from longstream.stream import kept_step
from longstream.stream.engine import NativeEngine
from tests.hf.conftest import KINDS, PEFT_WARNS, VOCAB, left_padded, random_ids, tiny_model

GREEDY = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0}
SAMPLING = {"do_sample": True, "max_new_tokens": 10, "pad_token_id": 0, "temperature": 0.8, "top_k": 7}
BEAMS = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "num_beams": 3, "length_penalty": 0.5}
PROMPTS = [random_ids(length, seed=length).tolist() for length in (3, 8, 1)]
IDS = random_ids(2, 6)
pytestmark = pytest.mark.filterwarnings("ignore:Passing `generation_config` together:FutureWarning")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def steps(monkeypatch):
    """Rows of each native step that runs."""
    taken = []
    run = NativeEngine.step
    monkeypatch.setattr(NativeEngine, "step", lambda self, x, *rest: (taken.append(len(x)), run(self, x, *rest))[1])
    return taken


def single(kind: str = "hgrn2", **fields: Any) -> Any:
    return tiny_model(kind, **fields).float()


def write(model, ids, backend="auto", **options):
    model.decode_backend = backend
    torch.manual_seed(3)
    out = model.generate(ids, **options)
    model.decode_backend = "auto"
    return out


@torch.no_grad()
def close(model, cache, text, step):
    """The step's logits are those of the whole text without a state."""
    logits = model(step, past_key_values=cache).logits[:, -1]
    expected = model(text, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("options", [GREEDY, SAMPLING, BEAMS], ids=["greedy", "sampling", "beams"])
def test_generate_writes_the_same(kind, options, steps):
    model, (ids, mask) = single(kind), left_padded(PROMPTS)
    assert model.decode_why_not is None
    expected = write(model, ids, "eager", attention_mask=mask, **options)
    assert steps == []
    assert write(model, ids, attention_mask=mask, **options).equal(expected)
    assert steps == [3 * options.get("num_beams", 1)] * 9


def test_assisted_text_is_the_same(kind, steps):
    model, ids = single(kind), random_ids(1, 6)
    helper = copy.deepcopy(model)
    helper.generation_config.assistant_confidence_threshold = 0.0
    helper.generation_config.num_assistant_tokens = 4
    expected = write(model, ids, "eager", **GREEDY)
    assert write(model, ids, assistant_model=helper, **GREEDY).equal(expected)
    assert len(steps) >= 6  # of the assistant
    assert write(model, ids, prompt_lookup_num_tokens=3, **GREEDY).equal(expected)


@torch.no_grad()
def test_the_cache_can_do_all_it_could(kind, steps):
    """State, copies, moved rows, text in several tokens and crops, between native steps."""
    model = single(kind)
    text = random_ids(3, 4)
    cache = model(text).past_key_values

    def go_on(cache, text, n=1):
        new = random_ids(len(text), n, seed=int(text.sum()))
        text = torch.cat([text, new], 1)
        close(model, cache, text, new)
        assert cache.get_seq_length() == text.shape[1]
        assert cache.batch_size == len(text)
        assert len(cache) == len(model.model.backbone.layers)
        return text

    text = go_on(cache, go_on(cache, text))
    assert cache.state.position.tolist() == [6, 6, 6]
    text = go_on(cache, text)
    for duplicate in (copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))):
        twin = duplicate(cache)
        go_on(twin, go_on(twin, text))
        text = go_on(cache, text)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    text = go_on(cache, go_on(cache, text[[2, 0, 0]]))
    cache.reorder_cache(torch.tensor([0, 1, 2]))
    text = go_on(cache, text)
    cache.batch_repeat_interleave(2)
    text = go_on(cache, go_on(cache, text.repeat_interleave(2, 0)), 3)
    cache.batch_select_indices(torch.tensor([5, 1]))
    text = go_on(cache, text[[5, 1]])
    cache.activate_past_recording()
    text = go_on(cache, go_on(cache, go_on(cache, text)))
    cache.crop(-2)
    text = go_on(cache, go_on(cache, text[:, :-2]))
    cache.crop(0)
    text = go_on(cache, go_on(cache, text))
    cache.crop(-1)
    assert cache.state.position.tolist() == [text.shape[1] - 1] * 2
    go_on(cache, text[:, :-1])
    assert len(steps) > 15
    cache.reset()
    go_on(cache, text[:, :0], 5)


@torch.no_grad()
def test_many_single_tokens_on_record():
    """More than a reading holds, and back over its end."""
    model, cache = single(), RecurrentCache()
    cache.activate_past_recording()
    text = random_ids(1, 3)
    model(text, past_key_values=cache)
    for n in range(90):
        new = random_ids(1, 1, seed=n)
        model(new, past_key_values=cache)
        text = torch.cat([text, new], 1)
    cache.crop(-70)
    text = torch.cat([text[:, :-70], IDS[:1, :1]], 1)
    close(model, cache, text, IDS[:1, :1])


@torch.no_grad()
def test_logits_are_those_of_the_model(kind):
    model = single(kind)
    cache, mine = model(IDS).past_key_values, []
    state = cache.state
    for _ in range(2):
        for option in ({}, {"vocabulary_only": True}, {"logits_to_keep": 1}, {"return_dict": False}):
            cache.state, cache.seq_length = state, 6
            out = model(IDS[:, :1], past_key_values=cache, **option)
            mine.append(out[0] if option.get("return_dict") is False else out.logits)
        model.decode_backend = "eager"
    for native, eager in zip(mine[:4], mine[4:], strict=True):
        assert native.shape == eager.shape
        torch.testing.assert_close(native, eager, rtol=1e-3, atol=1e-4 * float(eager.abs().max()))


def attempt(model, steps, **options):
    """How many native steps one token takes."""
    steps.clear()
    cache = model(IDS).past_key_values
    model(IDS[:, :1], past_key_values=cache, **options)
    return len(steps)


def test_where_it_does_not_run(steps):
    model = single()
    assert attempt(model, steps) == 0  # gradients
    with torch.no_grad():
        assert attempt(model, steps) == 1
        assert attempt(model, steps, output_hidden_states=True) == 0
        assert attempt(model, steps, labels=IDS[:, :1]) == 0
        assert attempt(model, steps, attention_mask=torch.tensor([[1], [0]])) == 0
        assert attempt(model, steps, attention_mask=torch.ones(2, 7)) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert attempt(model, steps) == 0
        hook = model.model.backbone.layers[1].register_forward_pre_hook(lambda *args: None)
        assert attempt(model, steps) == 0
        assert "hooks" in model.decode_why_not
        hook.remove()
        hook = model.model.register_forward_hook(lambda *args: None)
        assert attempt(model, steps) == 0
        hook.remove()
        model.decode_backend = "eager"
        assert attempt(model, steps) == 0
        assert model.decode_why_not == "decode_backend is 'eager'"
        model.decode_backend = "fast"
        with pytest.raises(ValueError, match=r"decode_backend must be one of \['auto', 'eager'\], got 'fast'"):
            attempt(model, steps)
        model.decode_backend = "auto"
        model.train()
        cache = RecurrentCache(model(IDS, use_cache=True).past_key_values.state)
        model(IDS[:, :1], past_key_values=cache)
        assert steps == []
        assert attempt(model.eval(), steps) == 1
        assert attempt(single().bfloat16(), steps) == 0
        assert attempt(single().double(), steps) == 0
    with torch.inference_mode():
        assert attempt(model, steps) == 1


@torch.no_grad()
def test_changes_of_the_model_are_seen(steps):
    model, cache = single(), RecurrentCache()
    text = IDS

    def go_on(n=1):
        nonlocal text
        new = random_ids(2, n, seed=text.shape[1])
        text = torch.cat([text, new], 1)
        steps.clear()
        mine = model(new, past_key_values=cache).logits
        twin = RecurrentCache(before, text.shape[1] - n)
        model.decode_backend = "eager"
        expected = model(new, past_key_values=twin).logits
        model.decode_backend = "auto"
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    model(IDS, past_key_values=cache)
    for change in (
        lambda: model.lm_head.weight.mul_(1.5),
        lambda: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}),
        lambda: setattr(model, "decode_weights", "bfloat16"),
        lambda: setattr(model, "decode_weights", "float32"),
        lambda: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight * 2)),
    ):
        change()
        before = cache.state
        if model.decode_weights == "float32":
            go_on()
        else:
            model(IDS[:, :1], past_key_values=cache)
            text = torch.cat([text, IDS[:, :1]], 1)
        assert len(steps) == 1
        steps.clear()
    cache.reset()
    model.lm_head.weight.data.mul_(0.5)  # torch counts no version of it; a new text is looked at closely
    before = None
    text = IDS[:, :0]
    go_on(4)
    before = cache.state
    go_on()


@torch.no_grad()
def test_kinds_of_weights(steps):
    model = single(hidden_size=48)
    expected = model(torch.cat([IDS, IDS[:, :1]], 1), use_cache=False).logits[:, -1]
    errors = {}
    for weights in ("float32", "bfloat16", "int8"):
        model.decode_weights = weights
        cache = model(IDS).past_key_values
        errors[weights] = float((model(IDS[:, :1], past_key_values=cache).logits[:, -1] - expected).abs().max())
        assert kept_step(model, weights).weights == weights
    assert errors["float32"] < 1e-4 * float(expected.abs().max()) < errors["bfloat16"]
    assert max(errors.values()) < 0.3 * float(expected.abs().max())
    assert len(steps) == 3


@torch.no_grad()
def test_bad_input_is_told_as_ever():
    model = single("hyena")
    cache = model(random_ids(1, 63)).past_key_values
    with pytest.raises(ValueError, match=rf"input_ids must lie in \[0, {VOCAB}\), got 99"):
        model(torch.tensor([[99]]), past_key_values=cache)
    with pytest.raises(ValueError, match="past_key_values must have 2 rows"):
        model(IDS[:, :1], past_key_values=cache)
    model(IDS[:1, :1], past_key_values=cache)
    with pytest.raises(ValueError, match=r"max_seq_len"):
        model(IDS[:1, :1], past_key_values=cache)
    assert cache.get_seq_length() == 64
    other = RecurrentCache(single("hgrn")(IDS).past_key_values.state)
    with pytest.raises(ValueError, match="belongs to another model"):
        model(IDS[:, :1], past_key_values=other)


@PEFT_WARNS
def test_adapters(steps):
    """LoRA is never gone around: before, with, merged and after."""
    peft = pytest.importorskip("peft")
    model = single()
    plain = write(model, IDS, **GREEDY)
    config = peft.LoraConfig(r=4, target_modules=["forget_proj", "out_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, config).eval()
    steps.clear()
    expected = adapted.generate(input_ids=IDS, **GREEDY)
    assert steps == []
    assert not expected.equal(plain)
    merged = adapted.merge_and_unload()
    assert write(merged, IDS, **GREEDY).equal(expected)
    assert steps
    assert write(merged, IDS, "eager", **GREEDY).equal(expected)


@torch.no_grad()
def test_saved_and_loaded(tmp_path, steps):
    model = single()
    expected = write(model, IDS, **GREEDY)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert write(again, IDS, **GREEDY).equal(expected)
    twin = copy.deepcopy(model)
    twin.lm_head.weight.mul_(-1)
    assert not write(twin, IDS, **GREEDY).equal(expected)
    assert write(model, IDS, **GREEDY).equal(expected)
