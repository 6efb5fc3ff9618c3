"""Candidates: an assistant or the text itself proposes tokens, and the state goes back over those that do not hold."""

import copy
import pickle
import random

import pytest
import torch

from longstream.hf import RecurrentCache
from longstream.hf._record import MOST, SPAN
from tests.hf.conftest import KINDS, VOCAB, left_padded, random_ids, tiny_model
from tests.numerics import assert_same

GREEDY = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
ASSISTANT = {"hyena": "hgrn2", "mixture": "hgrn"}  # or else a mixture: any of our models helps any other
# transformers 5.23's own assistant passes options beside a configuration.
pytestmark = pytest.mark.filterwarnings("ignore:Passing `generation_config` together:FutureWarning")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def write(model, ids, **options):
    torch.manual_seed(3)
    return model.generate(ids, **(GREEDY | options))


def sure(model, tokens=5):
    """A copy that proposes so many tokens, however unsure of them it is."""
    model = copy.deepcopy(model)
    model.generation_config.assistant_confidence_threshold = 0.0
    model.generation_config.num_assistant_tokens = tokens
    return model


def widths_of(model):
    """The columns of each call of the model from now on."""
    widths = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return widths


def mostly(model, share):
    """A copy that agrees with the model on most tokens, for noise in its head."""
    twin = sure(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        weight = twin.lm_head.weight
        weight.add_(share * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return twin


@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_does_not_change(kind, seed):
    model, ids = tiny_model(kind), random_ids(1, 3 + 2 * seed, seed=seed)
    expected = write(model, ids)
    other = tiny_model(ASSISTANT.get(kind, "mixture"))
    for helper in (sure(other), mostly(model, 0.3)):
        assert write(model, ids, assistant_model=helper).equal(expected)
    assert write(model, ids, prompt_lookup_num_tokens=3).equal(expected)


def test_the_same_model_is_always_right(kind):
    """20 tokens in 4 calls: 5 candidates and one more in each, where the last 2 are what is left."""
    model, ids = tiny_model(kind), random_ids(1, 6)
    helper, expected, widths = sure(model), write(model, ids), widths_of(model)
    assert write(model, ids, assistant_model=helper).equal(expected)
    assert widths == [6 + 5, 6, 6, 2]


def test_a_text_that_repeats_itself_is_looked_up(kind):
    """Fewer calls than tokens, and none reads past the end of the text."""
    model, ids = tiny_model(kind), random_ids(1, 7, seed=2)
    text = write(model, ids, max_new_tokens=28)
    prompt = torch.cat([text, ids], 1)
    expected, widths = write(model, prompt), widths_of(model)
    assert write(model, prompt, prompt_lookup_num_tokens=8).equal(expected)
    assert len(widths) < 20
    assert max(widths[1:]) <= 9


def test_hyena_to_the_end_of_its_filters():
    """64 tokens fit: 45 of the prompt and 20 more, for the last is not read."""
    model = tiny_model("hyena")
    prompt = random_ids(1, 5, seed=2).repeat(1, 9)
    expected = write(model, prompt)
    assert write(model, prompt, prompt_lookup_num_tokens=10).equal(expected)
    assert write(model, prompt, assistant_model=sure(model, 10)).equal(expected)


@pytest.mark.parametrize("schedule", ["constant", "heuristic", "heuristic_transient"])
@pytest.mark.parametrize("tokens", [1, 4, 30])
def test_schedules(schedule, tokens):
    model, ids = tiny_model("mixture"), random_ids(1, 6)
    helper = mostly(model, 0.2)
    helper.generation_config.num_assistant_tokens = tokens
    helper.generation_config.num_assistant_tokens_schedule = schedule
    assert write(model, ids, assistant_model=helper).equal(write(model, ids))


@pytest.mark.slow  # transformers imports sklearn for it
def test_the_threshold_of_confidence():
    """As transformers has it by default: an assistant stops where it is unsure."""
    model, ids = tiny_model("hgrn2 hybrid"), random_ids(1, 6)
    helper = mostly(model, 0.2)
    helper.generation_config.assistant_confidence_threshold = 0.4
    assert write(model, ids, assistant_model=helper).equal(write(model, ids))


def test_an_assistant_of_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    other, ours, ids = sure(LlamaForCausalLM(config).eval()), tiny_model(), random_ids(1, 6)
    assert write(ours, ids, assistant_model=other).equal(write(ours, ids))
    assert write(other, ids, assistant_model=sure(ours)).equal(write(other, ids))


def test_rules_ends_and_left_pads():
    model, ids = tiny_model("mixture"), random_ids(1, 6)
    helper = mostly(model, 0.2)
    free = write(model, ids)
    eos = int(free[0, 14])
    for options in ({"eos_token_id": eos}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}):
        expected = write(model, ids, **options)
        assert write(model, ids, assistant_model=helper, **options).equal(expected)
        assert write(model, ids, prompt_lookup_num_tokens=3, **options).equal(expected)
    padded, mask = left_padded([ids[0].tolist(), [0] * 9])
    for options in ({"assistant_model": helper}, {"prompt_lookup_num_tokens": 3}):
        out = write(model, padded[:1], attention_mask=mask[:1], **options)
        assert out[0, 3:].equal(free[0])


def test_sampling(kind):
    """A seed repeats; and an assistant that is the same model is never refused (but transformers warms it twice)."""
    model, ids = tiny_model(kind), random_ids(1, 6)
    helper, widths = sure(model), widths_of(model)
    options = {"do_sample": True, "top_k": 0, "assistant_model": helper}
    first = write(model, ids, **options)
    assert widths == [6 + 5, 6, 6, 2]
    assert write(model, ids, **options).equal(first)
    options |= {"temperature": 0.8, "top_p": 0.9}
    assert write(model, ids, **options).shape == (1, 26)
    assert write(model, ids, **(options | {"assistant_model": None, "prompt_lookup_num_tokens": 2})).shape == (1, 26)


@pytest.mark.slow
def test_samples_follow_the_models_distribution():
    """500 texts of two tokens, drawn through an assistant that is another model, and without one."""
    model, helper, ids = tiny_model("hgrn2"), sure(tiny_model("hgrn"), 2), random_ids(1, 4)
    torch.manual_seed(1)
    options = {"do_sample": True, "max_new_tokens": 2, "pad_token_id": 0, "temperature": 2.0, "top_k": 0}
    with torch.no_grad():
        first = (model(ids).logits[0, -1] / 2).softmax(-1)
        pairs = torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)
        second = first @ (model(pairs).logits[:, -1] / 2).softmax(-1)
    drawn = torch.cat([model.generate(ids, assistant_model=helper, **options)[:, 4:] for _ in range(500)])
    for place, p in enumerate((first, second)):
        frequency = torch.bincount(drawn[:, place], minlength=VOCAB) / 500
        assert ((frequency - p).abs() <= 4.5 * (p * (1 - p) / 500).sqrt() + 2e-3).all()


def test_goes_on_from_a_cache_and_returns_one(kind):
    model, ids = tiny_model(kind), random_ids(1, 6)
    helper, whole = mostly(model, 0.3), write(model, ids)
    for options in ({"assistant_model": helper}, {"prompt_lookup_num_tokens": 3}):
        cache = model(ids[:, :5]).past_key_values
        assert write(model, ids, past_key_values=cache, **options).equal(whole)
        assert cache.get_seq_length() == 25
        assert not cache.is_recording_past()
        assert_same("state", cache.state.position, torch.tensor([25]))
        state = model(ids[:, :5]).past_key_values.state
        out = write(model, ids, past_key_values=state, return_dict_in_generate=True, **options)
        y = model(out.sequences[:, 25:], past_key_values=out.past_key_values).logits[:, -1]
        assert_same("logits", y, model(whole).logits[:, -1])


def test_transformers_refusals_and_ours():
    model, two = tiny_model(), random_ids(2, 6)
    with pytest.raises(ValueError, match="only supported for batch_size = 1"):
        write(model, two, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="requires `use_cache=True`"):
        write(model, two[:1], prompt_lookup_num_tokens=3, use_cache=False)
    with pytest.raises(ValueError, match="num_return_sequences has to be 1"):
        write(model, two[:1], prompt_lookup_num_tokens=3, num_return_sequences=2, do_sample=True)
    with pytest.raises(ValueError, match="assistant_early_exit must be None, got 1"):
        write(model, two[:1], assistant_early_exit=1)
    cache = model(two[:1]).past_key_values
    for given in (two[:1], two[:1, :2]):
        with pytest.raises(ValueError, match="with candidates, input_ids must be the whole text, the 6 columns"):
            write(model, given, past_key_values=cache, prompt_lookup_num_tokens=3)


# The cache by itself.


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_going_back_at_random_is_reading_what_is_left(kind, seed):
    """Calls of any length, crops of any length, copies, pickles and moved rows; then logits of the text without."""
    model, rng = tiny_model(kind), random.Random(seed)
    cache, rows = RecurrentCache(), 2
    cache.activate_past_recording()
    text, free = torch.zeros(rows, 0, dtype=torch.long), 0
    for turn in range(14):
        n = rng.choice([1, 1, 1, 2, 5, 9])
        new = random_ids(rows, n, seed=100 * seed + turn)
        if text.shape[1] + n <= 60:
            logits = model(new, past_key_values=cache).logits
            text, free = torch.cat([text, new], 1), free + n
            assert_same("logits", logits[:, -1], model(text, use_cache=False).logits[:, -1])
        if rng.random() < 0.5:
            back = rng.randint(0, free)
            cache.crop(-back)
            text, free = text[:, : text.shape[1] - back], 0
        what = rng.random()
        if what < 0.2:
            cache = rng.choice([copy.copy, copy.deepcopy])(cache)
        elif what < 0.3:
            cache, free = pickle.loads(pickle.dumps(cache)), 0
            cache.activate_past_recording()
        elif what < 0.5:
            order = torch.tensor([1, 1] if rng.random() < 0.5 else [1, 0])
            cache.reorder_cache(order)
            text = text[order]
        assert cache.get_seq_length() == text.shape[1]
        if text.shape[1]:
            assert cache.batch_size == rows
    assert cache.state is None or cache.state.position.tolist() == [text.shape[1]] * rows


@torch.no_grad()
def test_a_long_prompt_is_read_in_two_calls():
    """So that little is read again; and its whole length can still be taken back."""
    model, ids = tiny_model("hgrn2 hybrid"), random_ids(1, 3 * SPAN)
    for back in (1, SPAN, SPAN + 1, 3 * SPAN):
        cache = RecurrentCache()
        cache.activate_past_recording()
        out = model(ids, past_key_values=cache, output_hidden_states=back == 1)
        assert_same("logits", out.logits, model(ids, use_cache=False).logits)
        cache.crop(-back)
        left = ids[:, : 3 * SPAN - back]
        logits = model(ids[:, :2], past_key_values=cache).logits
        assert_same("again", logits, model(torch.cat([left, ids[:, :2]], 1), use_cache=False).logits[:, -2:])


@torch.no_grad()
def test_pads_are_read_again_as_pads():
    model = tiny_model("mixture")
    ids, mask = left_padded([[1, 2, 3], [4, 5, 6, 7, 8, 9]])
    cache = RecurrentCache()
    cache.activate_past_recording()
    model(ids, attention_mask=mask, past_key_values=cache)
    cache.crop(-2)
    new = torch.tensor([[5, 6], [7, 8]])
    logits = model(new, past_key_values=cache).logits
    for row, text in enumerate(([1, 5, 6], [4, 5, 6, 7, 7, 8])):
        assert_same("logits", logits[row], model(torch.tensor([text]), use_cache=False).logits[0, -2:])


@torch.no_grad()
def test_hidden_states_are_of_the_new_columns():
    model, ids = tiny_model("mixture"), random_ids(1, 12)
    cache = RecurrentCache()
    cache.activate_past_recording()
    model(ids[:, :8], past_key_values=cache)
    cache.crop(-2)
    got = model(ids[:, 6:], past_key_values=cache, output_hidden_states=True).hidden_states
    whole = model(ids, use_cache=False, output_hidden_states=True).hidden_states
    for mine, expected in zip(got, whole, strict=True):
        assert_same("hidden", mine, expected[:, 6:])


@torch.no_grad()
def test_memory_stays():
    """One state and the inputs since the last crop; and where nobody crops, inputs up to a limit."""
    model = tiny_model("hgrn2")
    cache = RecurrentCache()
    cache.activate_past_recording()
    for _ in range(5):
        model(random_ids(1, 9), past_key_values=cache)
        cache.crop(-3)
        model(random_ids(1, 1), past_key_values=cache)
        cache.crop(0)
        assert cache._record == []
    for _ in range(3 * MOST // 500):
        model(random_ids(1, 500), past_key_values=cache)
    known = sum(reading.columns for reading in cache._record or ())
    assert MOST <= known < MOST + 500
    with pytest.raises(ValueError, match=f"crop: tokens_to_remove must be >= -{known}, as many columns"):
        cache.crop(-known - 1)
    cache.crop(-known)
    assert cache.state is not None


def test_back_to_before_the_first_token():
    model, ids = tiny_model("hgrn"), random_ids(1, 6)
    cache = RecurrentCache()
    cache.activate_past_recording()
    model(ids, past_key_values=cache)
    cache.crop(-6)
    assert (len(cache), cache.batch_size, cache.get_seq_length()) == (0, -1, 0)
    assert not cache.has_previous_state()
    assert_same("logits", model(ids, past_key_values=cache).logits, model(ids).logits)


def test_gradients_go_through_what_is_read_again():
    model, ids = tiny_model("hgrn2"), random_ids(1, 8)
    model(ids).logits[:, -1].sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    cache = RecurrentCache()
    cache.activate_past_recording()
    model(random_ids(1, 9, seed=3)[:, :2].copy_(ids[:, :2]), past_key_values=cache)
    model(ids[:, 2:5], past_key_values=cache)
    cache.crop(-2)
    model(ids[:, 3:], past_key_values=cache).logits[:, -1].sum().backward()
    for name, p in model.named_parameters():
        assert_same(name, p.grad, expected[name])
