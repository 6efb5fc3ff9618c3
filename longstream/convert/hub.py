"""Where a source is: on the disk, or under a name of the Hugging Face hub."""

import re
from pathlib import Path

_WANTED = ("*.json", "*.safetensors", "*.ckpt", "pytorch_model*.bin", "*.model", "*.txt", "*.jinja")


def find_source(source: str | Path) -> Path:
    """The path, or the folder that the hub's files of that name are in, which are fetched if they are not here.

    Raises:
        FileNotFoundError: it is not on the disk and not a name of the hub, or the hub has no such name or cannot be
            reached.
    """
    path = Path(source)
    if str(source) and path.exists():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise FileNotFoundError(f"convert: no file or folder {source or repr(source)}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    alternative = "give a folder with config.json and weights, as `hf download` makes one where there is a network"
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_WANTED)))
    except HFValidationError as error:
        raise FileNotFoundError(f"convert: no file or folder {source}, and it is no name of the hub") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"convert: no folder {source} here, nor files of that name in the hub's cache, and the hub cannot be"
            f" reached: {alternative}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"convert: no folder {source} here, and the hub does not give it ({reason}): {alternative}"
        ) from error
