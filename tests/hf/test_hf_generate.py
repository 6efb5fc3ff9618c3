"""generate: the state makes it quick and changes no token, in batches, with pads, and from a prompt already read."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from longstream.hf import RecurrentCache
from longstream.models import State, set_decode
from longstream.models import generate as native_generate
from tests.hf.conftest import VOCAB, left_padded, random_ids, tiny_model
from tests.numerics import assert_same

GREEDY = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
SAMPLING = {"do_sample": True, "max_new_tokens": 8, "pad_token_id": 0, "temperature": 0.8, "top_k": 7, "top_p": 0.9}
BEAMS = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "num_beams": 3, "length_penalty": 0.5}
MODES = pytest.mark.parametrize("options", [GREEDY, SAMPLING, BEAMS, BEAMS | {"num_return_sequences": 2}])

PROMPTS = [random_ids(length, seed=length).tolist() for length in (3, 8, 1)]
IDS = random_ids(2, 6)


def write(model, ids, **options):
    torch.manual_seed(3)
    options.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, **options)


def greedy_by_hand(model, ids, n):
    for _ in range(n):
        logits = model(ids, use_cache=False).logits[:, -1:, :VOCAB]
        ids = torch.cat([ids, logits.argmax(-1)], 1)
    return ids


def test_greedy_is_the_plain_loop(model):
    assert write(model, IDS, **GREEDY).equal(greedy_by_hand(model, IDS, 8))


@MODES
def test_the_state_changes_no_token(model, options):
    with_state = write(model, IDS, **options)
    assert with_state.equal(write(model, IDS, **options, use_cache=False))
    assert with_state.shape[1] == 14


@MODES
def test_each_step_reads_one_token(model, options):
    widths = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    write(model, IDS, **options)
    assert widths == [6] + [1] * 7


@pytest.mark.parametrize("options", [GREEDY, BEAMS])
def test_left_padded_batch_is_each_prompt_alone(model, options):
    ids, mask = left_padded(PROMPTS)
    batch = write(model, ids, **options, attention_mask=mask)
    for row, prompt in enumerate(PROMPTS):
        alone = write(model, torch.tensor([prompt]), **options)
        assert batch[row, ids.shape[1] - len(prompt) :].equal(alone[0])


@MODES
def test_prompt_in_two_calls(model, options):
    ids, mask = left_padded(PROMPTS)
    whole = write(model, ids, **options, attention_mask=mask)
    cache = model(ids[:, :6], attention_mask=mask[:, :6]).past_key_values
    cache.batch_repeat_interleave(options.get("num_beams", 1))
    for given in (ids, ids[:, 6:]):  # all of the text, or what is new with a mask for all of it
        later = write(model, given, **options, attention_mask=mask, past_key_values=copy.deepcopy(cache))
        assert later[:, given.shape[1] :].equal(whole[:, ids.shape[1] :])


def test_prompt_in_two_calls_without_pads(model):
    whole = write(model, IDS, **GREEDY)
    cache = model(IDS[:, :5]).past_key_values
    assert write(model, IDS, **GREEDY, past_key_values=cache).equal(whole)
    assert cache.get_seq_length() == 13  # the last token written has not been read
    more = write(model, whole, **GREEDY, past_key_values=cache)
    assert more.equal(greedy_by_hand(model, IDS, 16))


def test_goes_on_from_a_state(model, tmp_path):
    model(IDS[:, :5]).past_key_values.state.save(tmp_path / "state")
    state = State.load(tmp_path / "state")
    assert write(model, IDS, **GREEDY, past_key_values=state).equal(write(model, IDS, **GREEDY))
    assert state.position.tolist() == [5, 5]


@pytest.mark.parametrize("kind", ["hyena", "mixture"])
def test_ways_of_decoding_write_the_same(kind):
    model = tiny_model(kind)
    expected = write(model, IDS, **BEAMS)
    set_decode(model, "naive")
    assert write(model, IDS, **BEAMS).equal(expected)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_prefill_in_chunks(model, chunk):
    ids, mask = left_padded(PROMPTS)
    expected = write(model, ids, **GREEDY, attention_mask=mask)
    assert write(model, ids, **GREEDY, attention_mask=mask, prefill_chunk_size=chunk).equal(expected)


def test_finished_rows_do_not_disturb_the_others():
    model, ids = tiny_model(), torch.cat([random_ids(1, 4, seed=seed) for seed in range(6)])
    endless = write(model, ids, **GREEDY)
    (eos,) = [token for token in endless[:1, 5].tolist() if 0 < (endless[:, 4:] == token).any(1).sum() < 6]
    batch = write(model, ids, **GREEDY, eos_token_id=eos)
    for row in range(6):
        alone = write(model, ids[row][None], **GREEDY, eos_token_id=eos)[0]
        assert batch[row, : len(alone)].equal(alone)
        assert (batch[row, len(alone) :] == 0).all()
    assert (batch[0, 6:] == 0).all()


def test_embeddings_as_prompt(model):
    embeds = model.get_input_embeddings()(IDS)
    mask = torch.ones_like(IDS)
    assert model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY).equal(write(model, IDS, **GREEDY)[:, 6:])


def test_returned_state_goes_on(model):
    out = write(model, IDS, **GREEDY, return_dict_in_generate=True)
    cache = out.past_key_values
    assert isinstance(cache, RecurrentCache)
    y = model(out.sequences[:, cache.get_seq_length() :], past_key_values=cache).logits[:, -1]
    assert_same("logits", y, model(out.sequences).logits[:, -1])


def test_writes_as_the_native_models_do(model):
    """The same weights in `longstream.models.LanguageModel` write the same text."""
    from longstream.models import LanguageModel

    native = LanguageModel(model.config.to_model_config()).double()
    native.load_state_dict({name.removeprefix("model."): x for name, x in model.state_dict().items()})
    ids, mask = left_padded(PROMPTS)
    ours = write(model, ids, **GREEDY, attention_mask=mask)[:, ids.shape[1] :]
    assert native_generate(native, PROMPTS, 8, temperature=0) == ours.tolist()


def test_num_return_sequences_draws_apart(model):
    out = write(model, IDS, **SAMPLING, num_return_sequences=3)
    assert out.shape == (6, 14)
    assert len({tuple(row) for row in out.tolist()}) > 2


def test_nothing_new_is_refused(model):
    cache = model(IDS).past_key_values
    for given in (IDS, IDS[:, :2]):
        with pytest.raises(ValueError, match=r"generate: input_ids must have more than the 6 columns"):
            write(model, given, **GREEDY, past_key_values=cache)


def test_unknown_options_are_refused(model):
    with pytest.raises(ValueError, match="bogus"):
        write(model, IDS, **GREEDY, bogus=1)
    with pytest.raises(TypeError, match="position_ids"):
        write(model, IDS, **GREEDY, position_ids=IDS)


def test_too_few_rows_for_the_beams_are_refused(model):
    cache = model(IDS[:, :5]).past_key_values
    with pytest.raises(ValueError, match=r"must have 6 rows.* got 2; .*batch_repeat_interleave"):
        write(model, IDS, **BEAMS, past_key_values=cache)


def test_generation_config_is_saved(model, tmp_path):
    model.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    assert write(again, IDS).shape[1] == 9
