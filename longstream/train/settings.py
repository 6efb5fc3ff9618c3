"""Everything a training run can be told, declared once.

Each field below is a command-line flag (``--learning-rate``), a key of the TOML file (``learning_rate`` under
``[train]``) and a dotted override (``train.learning_rate=1e-3``); its annotation is the type check and its ``help`` the
line that ``--help`` prints. Later sources win: defaults, preset, TOML file, flags, overrides.

More than 300 lines, because the one declaration of all settings is what everything else reads.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from longstream.train.presets import PRESETS as PRESETS
from longstream.train.values import convert, is_unicode, toml_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_STEPS = 1000  # when neither steps nor minutes are given
MOST_THREADS = 1024  # torch takes any number, and some hundred thousand crash it


TASKS = ("next-token", "classify", "regress", "forecast", "tokens")
TEXT, LABELED, FRAMES, TOKENS = TASKS[:1], TASKS[1:3], TASKS[1:4], TASKS[4:]
FILES = TEXT + FRAMES  # tasks that read files


def _setting(
    default: Any,
    help: str,
    *,
    flag: str = "",
    resumable: bool = False,
    rare: bool = False,
    tasks: tuple[str, ...] = TASKS,
) -> Any:
    """A field with its help line.

    ``resumable``: may change when a run is resumed; ``rare``: has no line of its own; ``tasks``: that it is for.
    """
    metadata = {"help": help, "flag": flag, "resumable": resumable, "rare": rare, "tasks": tasks}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network. The vocabulary size comes from the tokenizer."""

    name: Literal[
        "hgrn2",
        "hgrn",
        "hyena",
        "hybrid",
        "llama",
        "mamba",
        "mamba2",
        "gru",
        "lstm",
        "vit",
        "edifice-hgrn",
        "edifice-hyena",
    ] = _setting("hgrn2", "hgrn2, hgrn, hyena, hybrid, llama, mamba, mamba2, gru, lstm", flag="--model")
    params: str = _setting("", "size, as 2M: picks hidden size, MLP and layers")
    hidden_size: int = _setting(256, "channels of the residual stream")
    num_hidden_layers: int = _setting(4, "blocks, each a mixer and an MLP")
    expand_ratio: int = _setting(0, "state size of an HGRN2 head; 0: a divisor of hidden size <= 64")
    hidden_ratio: int = _setting(4, "MLP width is 2/3 of this times hidden size, in 256s", rare=True)
    intermediate_size: int = _setting(0, "MLP width itself; 0: from hidden ratio")
    use_short_conv: bool = _setting(False, "short convolutions on the mixer's projections")
    conv_size: int = _setting(4, "taps of those convolutions", rare=True)
    tie_word_embeddings: bool = _setting(False, "one matrix for embedding and output", rare=True)
    direction: Literal["causal", "bidirectional", "2d", "2d_parallel", "2d_series"] = _setting(
        "causal", "bidirectional, or 2d of images", tasks=LABELED, rare=True
    )
    recurrence_ratio: int = _setting(1, "HGRN, GRU, LSTM: channels of the recurrence over hidden size", rare=True)
    hyena_order: int = _setting(2, "Hyena: gates, one more than long convolutions", rare=True)
    max_seq_len: int = _setting(0, "Hyena, Llama: longest sequence; 0: that of training", rare=True)
    pooling: Literal["", "mean", "last"] = _setting("", "of a sequence: mean, last", tasks=LABELED, rare=True)
    dropout: float = _setting(0.0, "of the residual branches", tasks=FRAMES, rare=True)
    lower_bound: Literal["learned", "none", "fixed", "decreasing"] = _setting(
        "learned", "HGRN, HGRN2: of the gates", rare=True
    )
    mlp: Literal["swiglu", "gelu", "bilinear", "none"] = _setting("swiglu", "of a block", rare=True)
    mixer_options: tuple[str, ...] = _setting((), "more of the mixer, as window=false", flag="--mixer", rare=True)
    block_options: tuple[str, ...] = _setting((), "more of the blocks, as norm=layer", flag="--block", rare=True)
    attention_every: int = _setting(4, "hybrid: of so many layers the last is attention", rare=True)
    attention_window: int = _setting(256, "hybrid: tokens that attention sees", rare=True)

    def __post_init__(self) -> None:
        _require(self, "hidden_size", self.hidden_size >= 1, ">= 1")
        _require(self, "num_hidden_layers", self.num_hidden_layers >= 1, ">= 1")
        _require(self, "expand_ratio", self.expand_ratio >= 0, ">= 0")
        for name in ("recurrence_ratio", "attention_every", "attention_window"):
            _require(self, name, getattr(self, name) >= 1, ">= 1")
        _require(self, "hyena_order", self.hyena_order >= 2, ">= 2")
        _require(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")
        _require(self, "max_seq_len", self.max_seq_len >= 0, ">= 0")
        if self.params:
            parse_count(self.params)
        _require(self, "hidden_ratio", self.hidden_ratio >= 1, ">= 1")
        _require(self, "intermediate_size", self.intermediate_size >= 0, ">= 0")
        _require(self, "conv_size", self.conv_size >= 2, ">= 2")
        gated = self.name in ("hgrn", "hgrn2", "hybrid")
        _require(self, "lower_bound", gated or self.lower_bound == "learned", f"left out for {self.name}: it has none")
        has_mlp = self.name in (*("hgrn", "hgrn2", "hybrid", "hyena"), "gru", "lstm")
        _require(self, "mlp", has_mlp or self.mlp == "swiglu", f"left out for {self.name}, which has its own")
        if self.has_expand_ratio and self.expand_ratio and not self.params:
            divides = self.hidden_size % self.expand_ratio == 0
            _require(self, "expand_ratio", divides, f"a divisor of hidden_size={self.hidden_size}")

    @property
    def has_expand_ratio(self) -> bool:
        """Whether the network has layers of HGRN2."""
        return self.name in ("hgrn2", "hybrid")

    @property
    def state_size(self) -> int:
        """expand_ratio, or where it is 0 the largest divisor of hidden_size up to 64."""
        return self.expand_ratio or next(k for k in range(64, 0, -1) if self.hidden_size % k == 0)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is read, and what is asked of it."""

    files: tuple[str, ...] = _setting((), "files to train on, or 'builtin'", flag="--data", tasks=FILES)
    task: Literal["next-token", "classify", "regress", "forecast", "tokens"] = _setting(
        "next-token", "next-token, classify, regress, forecast, tokens"
    )
    validation_files: tuple[str, ...] = _setting(
        (), "files held out instead of a part", flag="--validation-data", tasks=FILES
    )
    generator: str = _setting("", "tokens: the examples, as mqar:num_pairs=8", tasks=TOKENS)
    generator_start: str = _setting("", "fields that begin easier, as num_pairs=1", tasks=TOKENS, rare=True)
    ramp_ratio: float = _setting(0.6, "part of the run until they are the generator's", tasks=TOKENS, rare=True)
    train_examples: int = _setting(0, "tokens: a fixed set of so many; 0: ever fresh ones", tasks=TOKENS, rare=True)
    validation_examples: int = _setting(1000, "tokens: held out", tasks=TOKENS, rare=True)
    tokenizer: str = _setting("bytes", "'bytes', 'dna', 'bpe:N' (learned), or a tokenizer.json", tasks=TEXT)
    seq_len: int = _setting(512, "tokens per sequence; forecast: frames", tasks=FILES)
    validation_fraction: float = _setting(0.1, "held out: text and forecast from the end", tasks=FILES)
    validation_bytes: int = _setting(500_000, "held out at most; 0: no limit", rare=True, tasks=TEXT)
    hold_out_groups: tuple[str, ...] = _setting(
        (), "to hold out, as subjects", flag="--hold-out-group", tasks=LABELED, rare=True
    )
    split_seed: int = _setting(0, "of what is held out", rare=True, tasks=LABELED + TOKENS)
    rows: Literal["auto", "frames", "sequences"] = _setting("auto", "what a table's rows are", tasks=FRAMES, rare=True)
    layout: Literal["time-channels", "channels-time"] = _setting(
        "time-channels", "axes of an array", tasks=FRAMES, rare=True
    )
    as_grid: bool = _setting(False, "images as grids", tasks=FRAMES, rare=True)
    channels: tuple[str, ...] = _setting((), "columns to read; none: all others", tasks=FRAMES, rare=True)
    text_column: str = _setting("", "of a table", tasks=TEXT, rare=True)
    sequence_column: str = _setting("", "says which sequence a row is of", tasks=FRAMES, rare=True)
    label_column: str = _setting("", "the classes", tasks=FRAMES, rare=True)
    labels_file: str = _setting("", "the classes, in a file of their own", tasks=LABELED, rare=True)
    validation_labels_file: str = _setting("", "those of the validation files", tasks=LABELED, rare=True)
    label_from: Literal["", "folder", "file"] = _setting("", "the classes, by name", tasks=LABELED, rare=True)
    target_columns: tuple[str, ...] = _setting((), "what to predict", tasks=("regress",), rare=True)
    group_column: str = _setting("", "says what must stay together", tasks=FRAMES, rare=True)
    target_channels: tuple[str, ...] = _setting((), "to forecast; none: all", tasks=("forecast",), rare=True)
    horizon: int = _setting(1, "forecast: frames ahead", tasks=("forecast",), rare=True)
    stride: int = _setting(1, "forecast: frames between evaluated forecasts", tasks=("forecast",), rare=True)
    season: int = _setting(1, "forecast: frames of the seasonal-naive baseline", tasks=("forecast",), rare=True)

    def __post_init__(self) -> None:
        _require(self, "seq_len", self.seq_len >= 2, ">= 2")
        for name in ("validation_bytes", "train_examples", "validation_examples"):
            _require(self, name, getattr(self, name) >= 0, ">= 0")
        _require(self, "ramp_ratio", 0 < self.ramp_ratio <= 1, "in (0, 1]")
        for name in ("horizon", "stride", "season"):
            _require(self, name, getattr(self, name) >= 1, ">= 1")
        _require(self, "split_seed", 0 <= self.split_seed < 2**32, "between 0 and 2**32 - 1")
        _require(self, "validation_fraction", 0 <= self.validation_fraction < 1, "in [0, 1)")
        twice = bool(self.hold_out_groups and self.validation_files)
        _require(self, "hold_out_groups", not twice, "left out with validation_files, which are held out")
        alone = bool(self.validation_labels_file) and not self.validation_files
        _require(self, "validation_labels_file", not alone, "left out without validation_files, which it is of")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How it is trained, measured and kept."""

    steps: int = _setting(0, f"optimizer steps; 0: until --minutes, else {DEFAULT_STEPS}", resumable=True)
    minutes: float = _setting(0.0, "stop in time, schedule complete; 0: no limit", resumable=True)
    batch_size: int = _setting(8, "sequences per process and forward pass")
    gradient_accumulation: int = _setting(1, "forward passes per step", rare=True)
    learning_rate: float = _setting(3e-3, "peak learning rate")
    schedule: Literal["cosine", "wsd"] = _setting("cosine", "wsd: warm up, stay, decay")
    warmup_ratio: float = _setting(0.02, "part of the run spent warming up")
    decay_ratio: float = _setting(0.2, "part of the run spent decaying (wsd)", rare=True)
    min_lr_ratio: float = _setting(0.1, "last learning rate over peak", rare=True)
    weight_decay: float = _setting(0.1, "none on norms, biases and gates' bounds")
    adam_beta1: float = _setting(0.9, "AdamW", rare=True)
    adam_beta2: float = _setting(0.95, "AdamW", rare=True)
    max_grad_norm: float = _setting(1.0, "gradient clipping; 0: none", rare=True)
    bf16: bool = _setting(False, "bfloat16 autocast")
    gradient_checkpointing: bool = _setting(False, "less memory, more time", rare=True)
    chunk: int = _setting(0, "truncated backpropagation by so many tokens or frames; 0: none", tasks=FILES)
    class_weights: bool = _setting(False, "rare classes count as much as frequent ones", tasks=("classify",), rare=True)
    patience: int = _setting(
        0, "evaluations without a better one that end the run; 0: no limit", resumable=True, rare=True
    )
    eval_every: int = _setting(200, "steps; 0: at the end only", resumable=True)
    save_every: int = _setting(200, "steps; 0: at the end only", resumable=True)
    log_every: int = _setting(10, "steps", resumable=True, rare=True)
    keep: int = _setting(2, "checkpoints kept; 0: all", resumable=True, rare=True)
    sample_tokens: int = _setting(256, "length of the sample per evaluation; 0: none", resumable=True, rare=True)
    sample_prompt: str = _setting("", "what samples start from", resumable=True, rare=True)
    seed: int = _setting(0, "weights, order of the data, samples")
    threads: int = _setting(0, "CPU threads; 0: torch's choice", resumable=True)
    device: Literal["cpu", "auto"] = _setting("cpu", "auto: a GPU where there is one", resumable=True, rare=True)

    def __post_init__(self) -> None:
        for name in ("steps", "chunk", "patience", "eval_every", "save_every", "keep", "sample_tokens"):
            _require(self, name, getattr(self, name) >= 0, ">= 0")
        _require(self, "threads", 0 <= self.threads <= MOST_THREADS, f"between 0 and {MOST_THREADS}")
        _require(self, "seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")  # NumPy's range
        for name in ("batch_size", "gradient_accumulation", "log_every"):
            _require(self, name, getattr(self, name) >= 1, ">= 1")
        for name in ("minutes", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            _require(self, name, value >= 0 and math.isfinite(value), "finite and >= 0")
        finite = self.learning_rate > 0 and math.isfinite(self.learning_rate)
        _require(self, "learning_rate", finite, "finite and > 0")
        for name in ("warmup_ratio", "decay_ratio", "min_lr_ratio"):
            _require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("adam_beta1", "adam_beta2"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run, by section."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        task = self.data.task
        if task == "tokens":
            _require(self.data, "generator", bool(self.data.generator), "given with task tokens, as mqar:num_pairs=8")
        if task in TEXT + TOKENS:
            no_text = self.model.name != "vit" and not self.model.name.startswith("edifice-")
            _require(self.model, "name", no_text, "a model of text; this one takes frames, as --task classify")
        for section in (self.model, self.data, self.train):
            for f in fields(section):
                if task not in f.metadata["tasks"] and getattr(section, f.name) != f.default:
                    others = " or ".join(f.metadata["tasks"])
                    _require(section, f.name, False, f"left out with task {task}: it is for {others}")
        _require(
            self.data,
            "generator_start",
            not self.data.generator_start or self.train.steps > 0,
            "left out without train.steps, over which it is spread",
        )
        limited = self.model.name in ("hyena", "llama") and task in ("next-token", "forecast")
        fits = not (limited and 0 < self.model.max_seq_len < self.data.seq_len)
        _require(self.model, "max_seq_len", fits, f"0 or >= data.seq_len={self.data.seq_len}")


def _require(settings: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{type(settings).__name__}.{name} must be {expected}, got {getattr(settings, name)!r}")


def parse_count(text: str) -> float:
    """``"2M"`` -> 2e6: a number, with k, M or B behind it.

    Raises:
        ValueError: it is something else, or not positive.
    """
    factor = {"k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "b": 1e9, "B": 1e9}
    digits = text[:-1] if text[-1:] in factor else text
    try:
        count = float(digits) * factor.get(text[-1:], 1.0)
    except ValueError:
        count = 0.0
    if not 0 < count < math.inf:
        raise ValueError(f"ModelSettings.params must be a number such as 500k, 2M or 1.3B, got {text!r}")
    return count


def setting_fields() -> dict[str, tuple[Field[Any], Any]]:
    """Every setting: ``{"train.steps": (dataclass field, type)}``, in order of declaration."""
    found = {}
    for section, section_type in get_type_hints(Settings).items():
        hints = get_type_hints(section_type)
        found.update({f"{section}.{f.name}": (f, hints[f.name]) for f in fields(section_type)})
    return found


def build_settings(*sources: Mapping[str, Any]) -> Settings:
    """Settings from flat sources such as ``{"train.steps": 100}``, later sources winning; values may be strings.

    Raises:
        ValueError: an unknown key (the message names the nearest one), a value of the wrong type or out of range.
    """
    known = setting_fields()
    sections: dict[str, dict[str, Any]] = {section: {} for section in get_type_hints(Settings)}
    for source in sources:
        for key, value in source.items():
            if key not in known:
                raise ValueError(f"unknown setting {key!r}{nearest(key, known)}")
            section, name = key.split(".")
            sections[section][name] = convert(key, value, known[key][1])
    return Settings(**{name: hint(**sections[name]) for name, hint in get_type_hints(Settings).items()})


def nearest(word: str, known: Any) -> str:
    """``"; did you mean 'train.steps'?"``, or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def flatten(settings: Settings) -> dict[str, Any]:
    """``{"train.steps": 100, ...}`` of every setting."""
    return {f"{section}.{name}": value for section, part in asdict(settings).items() for name, value in part.items()}


def read_toml(path: Path) -> dict[str, Any]:
    """The flat settings of a TOML file with sections [model], [data] and [train]."""
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    flat = {}
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {section!r} stands outside of [model], [data] and [train]")
        flat.update({f"{section}.{name}": value for name, value in values.items()})
    return flat


def to_toml(settings: Settings) -> str:
    """The settings as TOML that ``read_toml`` reads back.

    Raises:
        ValueError: a setting holds bytes that are no UTF-8, as a file's name may.
    """
    for key, value in flatten(settings).items():
        for text in value if isinstance(value, tuple) else [value]:
            if isinstance(text, str) and not is_unicode(text):
                raise ValueError(f"{key} must be UTF-8 text, which is all that settings.toml can hold, got {text!r}")
    lines = []
    for section, values in asdict(settings).items():
        lines += [f"[{section}]", *(f"{name} = {toml_value(value)}" for name, value in values.items()), ""]
    return "\n".join(lines)
