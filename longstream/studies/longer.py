"""What language models cost far beyond the lengths of training, measured of new models: costs depend on no weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longstream.studies.language import BYTES
from longstream.studies.measures import rounds

# Of alone.json's figures, behind which the length stands.
DECODING, STATE = "decode_ms=", "state_kib="


def new_models(settings: Mapping[str, Mapping[str, Any]], longest: int) -> dict[str, Any]:
    """Models of flat settings, by name, that take ``longest`` tokens."""
    import torch

    from longstream.train.models import build_model
    from longstream.train.settings import build_settings

    found = {}
    for name, flat in settings.items():
        shape = {key: value for key, value in flat.items() if key.startswith("model.")}
        if shape["model.name"] == "hyena":
            shape["model.max_seq_len"] = longest
        torch.manual_seed(0)
        seq_len = min(longest, int(flat.get("data.seq_len", longest)))  # past which Llama counts as beyond training
        model = build_settings(shape, {"data.seq_len": seq_len}).model
        found[name] = build_model(model, vocab_size=BYTES, boundary_id=BYTES - 1, seq_len=seq_len).eval()
    return found


def decoding_figures(settings: Mapping[str, Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, dict[str, float]]:
    """Milliseconds of one token more behind contexts of some lengths, and the state in KiB, by model and length."""
    from longstream.train.contexts import decode_costs
    from longstream.train.rundir import quiet_transformers

    with quiet_transformers():
        costs = decode_costs(new_models(settings, max(lengths)), lengths)
    return {
        name: {
            key: value
            for cost in of
            for key, value in (
                *rounds(f"{DECODING}{cost.length}", cost.rounds).items(),
                (f"{STATE}{cost.length}", cost.state_bytes / 1024),
            )
        }
        for name, of in costs.items()
    }


def read_alone(folder: Path, group: str) -> dict[str, dict[str, float]]:
    """The figures of a group in a study's alone.json, by variant."""
    said = json.loads((folder / "alone.json").read_text(encoding="utf-8"))
    return {row["variant"]: row["measured"] for row in said["rows"] if row["group"] == group}


def at_lengths(measured: Mapping[str, float], prefix: str) -> list[tuple[float, float]]:
    """(length, figure) of the keys that begin with a prefix."""
    return sorted((float(key[len(prefix) :]), value) for key, value in measured.items() if key.startswith(prefix))


def draw_decoding(path: Path, folder: Path, group: str) -> bool:
    """Write a picture of time and memory against the context's length; False where nothing was measured."""
    from longstream.train.curves import Line, Panel, draw_panels

    rows = read_alone(folder, group)
    panels = [
        Panel(
            "tokens of context",
            label,
            [Line(name, at_lengths(of, prefix)) for name, of in rows.items()],
            log_x=2,
            log_y=10,
        )
        for prefix, label in ((DECODING, "ms a token"), (STATE, "state, KiB"))
    ]
    return draw_panels(path, "One token more behind a context", panels, list(rows))
