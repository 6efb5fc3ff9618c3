"""The golden language models of HGRN and HGRN2; the files are golden.py's."""

import json
import re

from tests import golden, golden_hgrn

LANGUAGE_MODELS = (*golden.LANGUAGE_MODELS, *golden.HGRN_LANGUAGE_MODELS)


def params(w):
    """fla's causal language model with HGRN -> our LanguageModel."""
    mixers = {name: array for name, array in w.items() if re.match(r"model\.layers\.\d+\.attn\.", name)}
    renamed = golden.fla_lm_params({name: array for name, array in w.items() if name not in mixers})
    for name, array in mixers.items():
        _, _, layer, _, rest = name.split(".", 4)
        ((ours, array),) = golden_hgrn.params({rest: array}).items()
        renamed[f"backbone.layers.{layer}.mixer.{ours}"] = array
    return renamed


class HGRNLanguageModelCase(golden.LanguageModelCase):
    """One golden language model with HGRN; its states are h (B, E) of every layer."""

    @property
    def mixer(self):
        """fla norms with its config's epsilon here."""
        return {"expand_ratio": self.config["expand_ratio"], "norm_eps": self.config["norm_eps"]}


def language_model_case(name):
    """The golden language model ``name`` as a LanguageModelCase."""
    if name not in golden.HGRN_LANGUAGE_MODELS:
        return golden.language_model_case(name)
    a = golden.load(name)
    config = json.loads(str(a["config_json"]))
    layers = config["num_hidden_layers"]
    return HGRNLanguageModelCase(
        config=config,
        params=params(golden.below(a, "w.")),
        grads=params(golden.below(a, "grad.w.")),
        ids=a["input_ids"],
        logits=a["logits"],
        loss=float(a["loss"]),
        hidden=[a[f"hidden.{n}"] for n in range(layers + 1)],
        states=[a[f"state.{n}"] for n in range(layers)],
        mask=a["attention_mask_leftpad"],
        logits_leftpad=a["logits_leftpad"],
        generated=a["generated_greedy_from12"],
    )
