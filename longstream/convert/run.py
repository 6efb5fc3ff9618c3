"""Convert a checkpoint, prove that it is the same model, and only then put it in place."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM

from longstream.convert.checkpoint import FORMATS, Checkpoint, open_checkpoint, read_json
from longstream.convert.hub import find_source
from longstream.convert.prove import LOGITS, compare_models, compare_tensors
from longstream.convert.targets import TARGETS, make_target
from longstream.convert.tensors import Made, Rounded, write_file, write_npz, write_safetensors
from longstream.train.rundir import written_beside

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What belongs to a model besides its configuration and weights; copied where it is.
_BESIDE = """
    tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json added_tokens.json vocab.json vocab.txt
    merges.txt generation_config.json chat_template.jinja
"""


@dataclass(frozen=True)
class Report:
    """What a conversion did and what it proved.

    Attributes:
        files:             of weights, written.
        tensors:           how many of the source's were compared with what the target gives back, all equal.
        rounding:          the largest difference between the two; 0 unless a dtype was asked for.
        logits_difference: the largest one between the outputs of both models; None where they were not compared.
        compared:          in words, what was compared and what was not.
    """

    files: tuple[Path, ...]
    tensors: int
    rounding: float
    logits_difference: float | None
    compared: str


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    source_format: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    config: str | Path | None = None,
    logits: str = "auto",
    shard_gigabytes: float = 4.0,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Write a checkpoint in another format. Tensors pass one at a time, and the target appears whole or not at all.

    Args:
        source:          a folder, a file of weights with config.json beside it, or a name on the Hugging Face hub.
        target:          a folder; a file, .safetensors or .npz, for a model of frames.
        to:              "longstream", "fla", "hyenadna" or "axon".
        source_format:   one of FORMATS; None looks at the files.
        dtype:           "float32", "bfloat16", ... to round to, but Hyena's filters stay as they are; None keeps all.
        overwrite:       replace a target that exists.
        config:          a JSON file in place of the source's config.json; for Axon's weights, options of
                         `longstream.build`, such as seq_len.
        logits:          how the outputs of both models are compared: "whole" loads each whole, "auto" takes large ones
                         layer by layer; "never" leaves it.
        shard_gigabytes: the most in one file of weights.
        tell:            gets lines of what is done.
    Raises:
        FileNotFoundError: the source, or the folder that the target would be in, is not there.
        FileExistsError:   there is a target.
        ValueError:        the source does not fit its configuration, the format cannot say what the model is, or what
                           was written is not the same model; the target is not put in place then.
    """
    for name, value, known in (
        ("to", to, TARGETS),
        ("from", source_format, (*FORMATS, None)),
        ("dtype", dtype, (*DTYPES, None)),
        ("logits", logits, LOGITS),
    ):
        if value not in known:
            raise ValueError(f"convert: {name} must be one of {[word for word in known if word]}, got {value!r}")
    if not 0 < shard_gigabytes < math.inf:
        raise ValueError(f"convert: shard_gigabytes must be > 0 and finite, got {shard_gigabytes}")
    target = Path(target)
    _check_target(target, overwrite)
    path = find_source(source)
    if target.resolve() in (path.resolve(), *path.resolve().parents):  # or --overwrite would delete the source
        raise ValueError(f"convert: the target must be another place than the source, not around it, got {target}")
    before = open_checkpoint(path, source_format, None if config is None else read_json(Path(config)))
    target_config, layout = make_target(before, to)
    _check_kind(before, to, target, dtype)
    tell(f"{before.describe()} -> {target} ({to})")

    kind = None if dtype is None else DTYPES[dtype]
    with written_beside(target) as beside:
        made = Made(Rounded(before.in_our_names(), kind, _stays), layout.to_theirs)
        if before.is_frames:
            files = _write_frames(made, target_config, to, beside)
        else:
            files = _write_folder(made, target_config, before, beside, int(shard_gigabytes * 1e9))
        tell(f"written      {sum(file.stat().st_size for file in files):,} bytes in {len(files)} file(s) of weights")
        after = open_checkpoint(beside, given=before.config.options if to == "axon" else None)
        rounding = compare_tensors(before, after, kind, _stays)
        count = len(before.layout.to_theirs)
        alike = "bit for bit" if dtype is None else f"once rounded to {dtype}"
        tell(
            f"tensors      {count} of {count}, read back from the target, are the source's {alike}; largest difference"
            f" {rounding:.1e}"
        )
        difference, compared = compare_models(before, after, kind, _stays, logits)
        tell(f"outputs      {compared}" + ("" if difference is None else f"; largest difference {difference:.1e}"))
    names = [target if before.is_frames else target / file.name for file in files]
    return Report(tuple(names), count, rounding, difference, compared)


def _stays(name: str) -> bool:
    """Whether one of our tensors keeps its dtype: in half precision neighboring taps of Hyena's filters are one."""
    return ".filter." in name or ".filter_reverse." in name


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"convert: no folder {target.absolute().parent} to write {target.name} in")
    if target.exists() and not overwrite:
        raise FileExistsError(f"convert: {target} exists; --overwrite replaces it")


def _check_kind(before: Checkpoint, to: str, target: Path, dtype: str | None) -> None:
    """A model of frames is a file, and a language model a folder."""
    suffixes = (".npz", ".safetensors") if to == "axon" else (".safetensors",)
    if before.is_frames and target.suffix not in suffixes:
        raise ValueError(f"convert: the target must end in {' or '.join(suffixes)}, got {target}")
    if target.suffix == ".npz" and dtype == "bfloat16":
        raise ValueError("convert: NumPy has no bfloat16; write a .safetensors")
    if not before.is_frames and (target.suffix in (".npz", ".safetensors") or target.is_file()):
        raise ValueError(f"convert: the target must be a folder, got {target}")


def _write_frames(made: Made, config: Any, to: str, file: Path) -> list[Path]:
    if file.suffix == ".npz":
        write_npz(file, made)
    else:
        write_file(file, made, made.names(), {"format": "pt"} if to == "axon" else config.metadata())
    return [file]


def _write_folder(made: Made, config: Any, before: Checkpoint, folder: Path, shard_bytes: int) -> list[Path]:
    folder.mkdir()
    widths = [made.meta(name).dtype for name in made.names() if ".filter" not in name]
    config.dtype = str(max(set(widths), key=widths.count)).removeprefix("torch.")
    auto: Any = AutoModelForCausalLM if before.has_head else AutoModel
    config.architectures = [auto._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    beside = before.path if before.path.is_dir() else before.path.parent
    for name in _BESIDE.split():
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
    return write_safetensors(folder, made, shard_bytes=shard_bytes)
