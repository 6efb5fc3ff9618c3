"""The type "longstream": any ModelConfig there and back, padded vocabularies, Hyena's longest text, both directions."""

import copy
import json
import pickle
from dataclasses import asdict, fields, replace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from longstream.hf import HGRNConfig, LongstreamConfig, LongstreamForCausalLM, LongstreamModel
from longstream.models import HGRN2Config as HGRN2MixerConfig
from longstream.models import HGRNConfig as HGRNMixerConfig
from longstream.models import HyenaConfig, ModelConfig
from tests.hf.conftest import ATTENTION, HYENA, VOCAB, left_padded, random_ids, tiny_config, tiny_model
from tests.numerics import assert_same

MODELS = [
    ModelConfig(hidden_size=24, num_layers=2, vocab_size=19),
    ModelConfig(hidden_size=24, num_layers=3, vocab_size=7, mixer=HGRNMixerConfig(unit="complex", norm_eps=1 / 3)),
    ModelConfig(
        **{"hidden_size": 24, "num_layers": 5, "hidden_ratio": 2.7, "mlp": "gelu", "norm": "layer", "dropout": 0.1},
        **{"embed_dropout": 0.2, "lower_bound": None, "vocab_size": 12, "vocab_multiple": 8, "tie_embeddings": True},
        **{"initializer_range": 0.3, "rescale_residual": True, "intermediate_size": 11, "norm_eps": 1e-7},
        layers=(HyenaConfig(order=3, filter_lr=6e-4, window_shift=0.05), ATTENTION, HGRN2MixerConfig(expand_ratio=4)),
    ),
]


@pytest.mark.parametrize("model_config", MODELS)
def test_there_and_back(model_config, tmp_path):
    config = LongstreamConfig.from_model_config(model_config, eos_token_id=3, pad_token_id=1)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is LongstreamConfig
    for each in (again, config, copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert each.to_model_config() == model_config
        assert (each.eos_token_id, each.pad_token_id, each.bos_token_id) == (3, 1, None)
    assert again.to_diff_dict() == config.to_diff_dict()


def test_file_is_plain_and_whole(tmp_path):
    config = tiny_config("mixture")
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert set(written) == {
        *("model", "model_type", "transformers_version", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }
    model = written["model"]
    assert set(model) == {field.name for field in fields(ModelConfig)}
    assert [mixer["type"] for mixer in model["layers"]] == ["hgrn", "hyena", "hgrn2", "attention"]
    assert model["layers"][1] == {"type": "hyena"} | asdict(HYENA)
    assert model["layers"][3] == {"type": "attention"} | asdict(ATTENTION)


def test_what_is_left_out_has_its_default():
    config = LongstreamConfig(model={"hidden_size": 64, "num_layers": 2, "vocab_size": 9, "mixer": {"type": "hgrn"}})
    expected = ModelConfig(hidden_size=64, num_layers=2, vocab_size=9, mixer=HGRNMixerConfig())
    assert config.to_model_config() == expected
    assert config.model["norm_eps"] == expected.norm_eps


def test_words_of_transformers():
    config = tiny_config("hyena", tie_embeddings=True)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (VOCAB, 24, 2)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (64, True)
    assert tiny_config("mixture", layers=(ATTENTION,)).max_position_embeddings is None
    config.vocab_size, config.tie_word_embeddings = 23, False
    assert (config.to_model_config().vocab_size, config.to_model_config().tie_embeddings) == (23, False)


def test_a_type_of_fla_can_be_read_as_this_one():
    config = HGRNConfig(hidden_size=64, attn={"layers": [1], "num_heads": 4, "window_size": 8}, num_hidden_layers=2)
    again = LongstreamConfig.from_model_config(config.to_model_config())
    assert again.to_model_config() == config.to_model_config()
    assert again.attention_layers == config.attention_layers == (1,)


GOOD = {"hidden_size": 24, "num_layers": 2, "vocab_size": 19}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, r"model must have the keys \['hidden_size', 'num_layers'\]"),
        ({"hidden_size": 24, "vocab_size": 3}, r"got none named \['num_layers'\]"),
        ({"hidden_size": 24, "num_layers": 2}, r"model\['vocab_size'\] must be given"),
        (GOOD | {"zeta": 1, "beta": 2}, r"model has unknown keys \['beta', 'zeta'\]; ModelConfig takes"),
        (
            GOOD | {"mixer": {"type": "hyena", "ordre": 3}},
            r"model\['mixer'\] has unknown keys \['ordre'\]; HyenaConfig",
        ),
        (GOOD | {"mixer": {"order": 3}}, r"model\['mixer'\] must have a 'type' out of \['hgrn', .*got None"),
        (GOOD | {"mixer": "mamba"}, r"model\['mixer'\] must have a 'type' .*got 'mamba'"),
        (GOOD | {"layers": [{"type": "hgrn"}, {"type": ["a"]}]}, r"model\['layers'\]\[1\] must have a 'type'"),
        (GOOD | {"layers": [{"type": "attention", "num_heads": 2}]}, r"\[0\] must have the keys .*\['window_size'\]"),
        (GOOD | {"mixer": {"type": "hyena", "order": 1}}, "order must be .*got 1"),
        (GOOD | {"norm": "group"}, "norm must be one of"),
    ],
)
def test_refusals(model, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        LongstreamConfig(model=model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "longstream", "model": model}))
    with pytest.raises(ValueError, match=words):
        AutoConfig.from_pretrained(tmp_path)


def test_other_keys_are_reported_and_kept(caplog):
    config = LongstreamConfig(
        **{"model": GOOD, "vocab_size": 21, "tie_word_embeddings": True, "torch_dtype": "float32"}
    )
    assert caplog.records == []
    assert (config.to_model_config().vocab_size, config.to_model_config().tie_embeddings) == (21, True)
    assert LongstreamConfig(**{"model": GOOD, "zeta": 3}).to_dict()["zeta"] == 3
    (record,) = caplog.records
    assert "LongstreamConfig: unknown keys ['zeta']" in record.getMessage()


def test_what_follows_from_the_model_cannot_be_given():
    with pytest.raises(ValueError, match=r"\['hidden_size', 'num_hidden_layers'\] follow from model"):
        LongstreamConfig(**{"model": GOOD, "hidden_size": 24, "num_hidden_layers": 2})


GREEDY = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
SAMPLING = GREEDY | {"do_sample": True, "top_k": 0}
BEAMS = GREEDY | {"num_beams": 3, "output_scores": True, "return_dict_in_generate": True}


@pytest.fixture
def padded():
    """A model whose vocabulary is padded to eights, with rows that win if they are let; and one without these rows."""
    model, bare = tiny_model("hyena"), tiny_model("hyena", vocab_multiple=1)
    assert model.lm_head.weight.shape[0] == 24
    with torch.no_grad():
        model.lm_head.weight[VOCAB:] *= 100
    cut = {
        name: x[:VOCAB] if name.endswith(("embeddings.weight", "head.weight")) else x
        for name, x in model.state_dict().items()
    }
    bare.load_state_dict(cut)
    return model, bare


def test_logits_and_loss_are_over_all_rows(padded):
    model, bare = padded
    ids = random_ids(2, 7)
    out = model(ids, labels=ids)
    assert out.logits.shape == (2, 7, 24)
    assert (out.logits.argmax(-1) >= VOCAB).any()
    assert_same("loss", out.loss, F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    only = model(ids, labels=ids, vocabulary_only=True)
    assert_same("true logits", only.logits, bare(ids).logits)
    assert_same("loss", only.loss, out.loss)


@pytest.mark.parametrize("options", [GREEDY, SAMPLING, BEAMS])
def test_padding_of_the_vocabulary_is_never_written(padded, options):
    texts = []
    for model in padded:
        torch.manual_seed(0)
        out = model.generate(random_ids(2, 5), attention_mask=torch.ones(2, 5), **options)
        texts.append(out.sequences if options is BEAMS else out)
        if options is BEAMS:
            assert out.scores[0].shape[-1] == VOCAB
            model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    assert texts[0].equal(texts[1])  # nor does it weigh on what is written
    with pytest.raises(ValueError, match=r"input_ids must lie in \[0, 19\), got 19"):
        padded[0](torch.tensor([[VOCAB]]))


def test_texts_as_long_as_the_filters_and_no_longer():
    model = tiny_model("hyena")
    seen = []
    model.model.register_forward_pre_hook(lambda *_: seen.append(1))
    ids, mask = random_ids(1, 50), torch.ones(1, 50)
    whole = model.generate(ids, attention_mask=mask, **GREEDY | {"max_new_tokens": 15})  # the last one is not read
    assert whole.shape[1] == 65
    seen.clear()
    for options in (GREEDY | {"max_new_tokens": 16}, {"max_length": 66, "pad_token_id": 0}):
        with pytest.raises(ValueError, match=r"LongstreamForCausalLM.generate: .*max_seq_len=64, got 50 \+ 16"):
            model.generate(ids, attention_mask=mask, **options)
    with pytest.raises(ValueError, match=r"max_seq_len=64, got 50 \+ 16"):
        model.generate(
            inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, **GREEDY | {"max_new_tokens": 16}
        )
    assert seen == []
    with pytest.raises(ValueError, match=r"max_seq_len=64 .*got 65"):
        model(random_ids(1, 65))
    cache = model(random_ids(1, 64)).past_key_values
    before = cache.state
    with pytest.raises(ValueError, match=r"max_seq_len=64 .*got 65"):
        model(random_ids(1, 1), past_key_values=cache)
    assert cache.state is before


def test_pads_do_not_count_and_what_the_state_has_read_does():
    model = tiny_model("hyena")
    ids, mask = left_padded([random_ids(40, seed=1).tolist(), random_ids(50, seed=2).tolist()])
    ids, mask = F.pad(ids, (10, 0)), F.pad(mask, (10, 0))
    options = GREEDY | {"max_new_tokens": 15}
    text = model.generate(ids, attention_mask=mask, **options)
    cache = model(ids[:, :58], attention_mask=mask[:, :58]).past_key_values
    for given in (ids, ids[:, 58:]):
        later = model.generate(given, attention_mask=mask, past_key_values=copy.deepcopy(cache), **options)
        assert later[:, given.shape[1] :].equal(text[:, 60:])
        with pytest.raises(ValueError, match=r"max_seq_len=64, got 50 \+ 16"):
            model.generate(given, attention_mask=mask, past_key_values=cache, **options | {"max_new_tokens": 16})


def test_default_length_stops_at_the_longest_text():
    with pytest.warns(UserWarning, match="max_length"):
        text = tiny_model("hyena").generate(random_ids(1, 60), pad_token_id=0)
    assert text.shape[1] == 64


BOTH_WAYS = replace(
    tiny_config("mixture").to_model_config(),
    layers=(replace(HYENA, causal=False), HGRNMixerConfig(direction="bidirectional")),
)


def test_models_that_look_both_ways_have_no_state_and_do_not_write(tmp_path):
    config = LongstreamConfig.from_model_config(BOTH_WAYS)
    with pytest.raises(ValueError, match="LongstreamForCausalLM: every layer must go from token to token"):
        AutoModelForCausalLM.from_config(config)
    model = AutoModel.from_config(config).double().eval()
    assert type(model) is LongstreamModel
    ids, mask = left_padded([random_ids(5, seed=1).tolist(), random_ids(3, seed=2).tolist()])
    out = model(ids, attention_mask=mask, use_cache=True)
    assert out.past_key_values is None
    assert_same("outputs", out.last_hidden_state[1, 2:], model(ids[1:, 2:]).last_hidden_state[0])
    changed = model(torch.cat([ids[:1, :-1], (ids[:1, -1:] + 1) % VOCAB], 1)).last_hidden_state
    assert (changed[0, 0] - out.last_hidden_state[0, 0]).abs().max() > 1e-6
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert_same("outputs", again(ids, attention_mask=mask).last_hidden_state, out.last_hidden_state)
    grads = []
    for checkpointed in (False, True):
        run = copy.deepcopy(model).train()
        if checkpointed:
            run.activation_checkpointing_enable()
        run(ids, attention_mask=mask).last_hidden_state.square().sum().backward()
        grads.append([p.grad for p in run.parameters()])
    for plain, again in zip(*grads, strict=True):
        assert_same("gradient", again, plain)


def test_dropout_of_the_embeddings():
    model = tiny_model("hyena", embed_dropout=0.5)
    ids = random_ids(2, 7)
    assert_same("outputs", model(ids).logits, tiny_model("hyena", embed_dropout=0.25)(ids).logits)
    model.train()
    assert (model(ids).logits - model(ids).logits).abs().max() > 0.1


def test_classes_know_each_other():
    assert type(tiny_model("mixture")) is LongstreamForCausalLM
    assert type(tiny_model("mixture").model) is LongstreamModel
    assert isinstance(tiny_model("hgrn"), LongstreamForCausalLM)
