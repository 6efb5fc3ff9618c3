"""Weights are read from safetensors only: what else a checkpoint offers is refused, and no file is ever unpickled."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file


def refuse_other_formats(source: str, path: Any, options: dict[str, Any]) -> None:
    """What from_pretrained is asked to read must be safetensors, by every way in which transformers finds files."""
    if options.get("use_safetensors") is False:
        raise ValueError(f"{source}: use_safetensors must be True, got False: only safetensors are read")
    if options.get("gguf_file") is not None:
        raise ValueError(f"{source}: gguf_file must be None, got {options['gguf_file']!r}: only safetensors are read")
    for weights in (
        options.get("transformers_weights"),
        getattr(options.get("config"), "transformers_weights", None),
    ):
        if weights is not None:
            refuse_other_names(f"{source}: transformers_weights", [weights])
    if path is None:
        return
    subfolder = options.get("subfolder") or ""
    directory = Path(path, subfolder)
    if directory.is_dir():
        names = [file.name for file in directory.iterdir()]
        others = sorted(name for name in names if name.endswith((".bin", ".bin.index.json", ".pt", ".pth")))
        if others and not any(".safetensors" in name or name == "adapter_config.json" for name in names):
            raise FileNotFoundError(
                f"{source}: expected safetensors in the directory {directory}, got {others}: only safetensors are read"
            )
    elif os.path.isfile(os.path.join(subfolder, path)):  # transformers takes a file where it is given the config
        return refuse_other_names(source, [os.fspath(path)])
    variant = options.get("variant")
    index_name = SAFE_WEIGHTS_INDEX_NAME.replace(".json", f".{variant}.json" if variant else ".json")
    download = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
    index = cached_file(
        path,
        index_name,
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        **{key: options[key] for key in download if key in options},
    )
    if index is not None:
        shards = PretrainedConfig._dict_from_json_file(index)["weight_map"].values()
        refuse_other_names(f"{source}: {index_name}", shards)


def refuse_other_names(source: str, files: Iterable[str]) -> None:
    """Files of weights must be called what safetensors are called."""
    if others := sorted({file for file in files if not file.endswith(".safetensors")}):
        raise ValueError(f"{source}: expected files of safetensors, got {others}: only safetensors are read")
