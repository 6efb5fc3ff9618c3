"""Settings: one declaration, many sources, no unknown word."""

import os
import re
from pathlib import Path

import pytest

from longstream.train.settings import (
    PRESETS,
    Settings,
    build_settings,
    flatten,
    read_toml,
    setting_fields,
    to_toml,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings(preset: str):
    assert build_settings(PRESETS[preset]) != Settings()


def test_toml_and_back(tmp_path: Path):
    odd = {"data.files": ["a b.txt", 'q"uote\\', "ünï水🚢", "tab\tnew\nline\x7f"], "train.learning_rate": 1e-5}
    settings = build_settings(PRESETS["small"], odd, {"train.bf16": True, "train.sample_prompt": "[x]\n"})
    (tmp_path / "s.toml").write_text(to_toml(settings), encoding="utf-8")
    assert build_settings(read_toml(tmp_path / "s.toml")) == settings


def test_strings_of_the_command_line_and_values_of_toml_are_the_same():
    words = {
        "train.steps": "7",
        "train.learning_rate": "1e-2",
        "train.bf16": "true",
        "data.files": "x",
        "train.minutes": "2",
    }
    values = {
        "train.steps": 7,
        "train.learning_rate": 0.01,
        "train.bf16": True,
        "data.files": ["x"],
        "train.minutes": 2,
    }
    assert build_settings(words) == build_settings(values)
    assert flatten(build_settings(words))["train.steps"] == 7


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.stepz", 1, r"unknown setting 'train\.stepz'; did you mean 'train\.steps'\?"),
        ("steps", 1, "unknown setting 'steps'"),
        ("train.steps", 1.5, r"train\.steps must be an integer, got 1\.5"),
        ("train.steps", True, r"train\.steps must be an integer, got True"),
        ("train.steps", "1e3", "must be an integer"),
        ("train.threads", 1025, r"TrainSettings\.threads must be between 0 and 1024, got 1025"),
        ("train.seed", 2**32, "must be between 0 and"),
        ("train.steps", -1, r"TrainSettings\.steps must be >= 0, got -1"),
        ("train.learning_rate", "nan", "must be finite and > 0, got nan"),
        ("train.minutes", "inf", "must be finite and >= 0, got inf"),
        ("train.bf16", "yes", "train.bf16 must be true or false, got 'yes'"),
        ("train.bf16", 1, "must be true or false, got 1"),
        ("train.schedule", "linear", "must be one of cosine, wsd, got 'linear'"),
        ("data.files", [1], r"data\.files must be a list of strings, got \[1\]"),
        ("data.tokenizer", 3, r"data\.tokenizer must be a string, got 3"),
        ("data.validation_fraction", 1, r"must be in \[0, 1\), got 1\.0"),
        ("data.seq_len", 1, "must be >= 2, got 1"),
        ("model.expand_ratio", 100, "must be a divisor of hidden_size=256, got 100"),
    ],
)
def test_wrong_settings_are_refused_by_name(key: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        build_settings({key: value})


def test_bytes_that_are_no_text_are_refused_by_key():
    name = os.fsdecode(b"bad\xff.txt")
    for key, value in {"data.files": ["good.txt", name], "data.tokenizer": name, "train.sample_prompt": name}.items():
        with pytest.raises(ValueError, match=rf"^{re.escape(key)} must be UTF-8 text, .* got 'bad\\udcff\.txt'$"):
            to_toml(build_settings({key: value}))


@pytest.mark.parametrize("text", ["a = ", "top = 1", "[train]\nsteps = 1\n[train]\n"])
def test_wrong_toml_names_the_file(tmp_path: Path, text: str):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ValueError, match=r"s\.toml"):
        build_settings(read_toml(tmp_path / "s.toml"))


def test_every_setting_has_help_and_a_flag_of_its_own():
    flags = set()
    for key, (field, _) in setting_fields().items():
        assert field.metadata["help"], key
        flags.add(field.metadata["flag"] or key.partition(".")[2])
    assert len(flags) == len(setting_fields())
