"""`longstream evaluate RUN --harness TASKS`: EleutherAI's lm-evaluation-harness on a model of text."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from longstream.train.loading import SEQUENCE_MODEL, load_run, read_generator, read_model_type
from longstream.train.rundir import quiet_transformers, write_text

logger = logging.getLogger("longstream")

NAMES = {"json": "harness.json", "table": "harness.md"}  # files in --out
KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def add_harness_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `longstream evaluate` that are about lm-evaluation-harness."""
    group = parser.add_argument_group("of EleutherAI's lm-evaluation-harness, on a model of text")
    group.add_argument(
        "--harness", metavar="TASKS", help="tasks by their names or files, such as hellaswag,arc_easy,my_task.yaml"
    )
    group.add_argument("--include-path", metavar="DIR", help="a folder with more task files")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each task [all]")
    group.add_argument("--num-fewshot", type=int, metavar="N", help="solved examples before each [as the task says]")


def refuse_without_harness(args: argparse.Namespace) -> None:
    """Raise where a flag says how a harness is to run that nobody asked for."""
    for name in ("include_path", "limit", "num_fewshot"):
        if getattr(args, name) is not None:
            raise ValueError(f"evaluate: --{name.replace('_', '-')} is for --harness TASKS, which is missing")


def run_harness(args: argparse.Namespace, changes: Mapping[str, Any]) -> list[str]:
    """Run tasks on the model of a run, and say in lines what came of them; with --out in files, too."""
    if others := ["--data"] * bool(args.data) + ["--examples"] * bool(args.examples) + list(changes):
        raise ValueError(f"evaluate: {others[0]} is not for --harness, whose tasks bring data of their own")
    for name, least in {"limit": 1, "num_fewshot": 0}.items():
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f"evaluate: --{name.replace('_', '-')} must be >= {least}, got {value}")
    if read_model_type(args.model) == SEQUENCE_MODEL or read_generator(args.model) is not None:
        raise ValueError(f"evaluate: --harness is for models of text, which {args.model} is not")
    names = [name.strip() for name in args.harness.split(",") if name.strip()]
    if not names:
        raise ValueError("evaluate: --harness names no task")
    files = {kind: Path(args.out) / name for kind, name in NAMES.items()} if args.out else {}
    if taken := [file for file in files.values() if file.exists()]:
        raise FileExistsError(f"evaluate: {taken[0]} exists: choose another --out")
    model, tokenizer = load_run(args.model)
    started = time.monotonic()
    tasks = load_tasks(names, args.include_path, args.num_fewshot)
    results = evaluate_tasks(model, tokenizer, tasks, limit=args.limit)
    seconds = time.monotonic() - started
    table = make_lines(results)
    first = "" if args.limit is None else f", the first {args.limit:,} examples of each"
    head = f"{args.model}: lm-eval {version('lm-eval')}, {', '.join(tasks['tasks'])}{first}, {seconds:.1f} s"
    if files:
        from lm_eval.utils import handle_non_serializable

        about = {"model": args.model, "lm_eval": version("lm-eval"), "limit": args.limit, "seconds": round(seconds, 2)}
        content = about | {key: results[key] for key in KEPT if key in results}
        Path(args.out).mkdir(parents=True, exist_ok=True)
        write_text(files["json"], json.dumps(content, indent=2, default=handle_non_serializable) + "\n")
        write_text(files["table"], "\n".join([head, "", *table]) + "\n")
    return [head, "", *table, *map(str, files.values())]


def evaluate_tasks(model: Any, tokenizer: Any, tasks: Any, *, limit: int | None = None) -> dict[str, Any]:
    """What lm-eval makes of a model on tasks of `load_tasks`.

    Args:
        model:     a causal language model of longstream.hf or a baseline.
        tokenizer: the tokenizer it was trained with.
        limit:     examples of each task; None is all.
    """
    from lm_eval.evaluator import evaluate

    from longstream.train.harness_model import HarnessModel

    with quiet_transformers(), _quiet():
        found: Any = evaluate(lm=HarnessModel(model, tokenizer), task_dict=tasks, limit=limit, log_samples=False)
    return found


def load_tasks(names: Sequence[str], include_path: str | None = None, num_fewshot: int | None = None) -> Any:
    """Tasks by their names in lm-eval or in files under ``include_path``, by patterns of names, or by files.

    Raises:
        ModuleNotFoundError: lm-eval is not there.
        ValueError:          no such task, or one that cannot be read; the message says what is the matter.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"evaluate: --harness needs lm-eval ({error}): pip install 'longstream[eval]'", name=error.name
        ) from None

    folder = None if include_path is None else _checked(Path(include_path))
    with _quiet():
        return _load(names, folder, num_fewshot)


def _load(names: Sequence[str], folder: Path | None, num_fewshot: int | None) -> Any:
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False)
    found = [_find(name, manager) for name in names]
    if not all(found) or any(_is_group(spec, manager) for specs in found for spec in specs):
        logger.info("reading the list of lm-eval's tasks ...")  # some seconds: there are thousands of files
        manager = TaskManager(include_path=folder)
        found = [_find(name, manager) for name in names]
    for name, specs in zip(names, found, strict=True):
        if not specs:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"evaluate: lm-eval has no task {name!r}{hint}")
    random.seed(DEFAULT_RANDOM_SEED)  # tasks may shuffle as they load, and lm-eval's own command seeds them so
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        tasks = manager.load(list(dict.fromkeys(spec for specs in found for spec in specs)))
        for task in tasks["tasks"].values():
            usual = task.get_config("num_fewshot")
            if num_fewshot is not None and usual == 0:
                logger.warning("evaluate: %s is asked without solved examples, whatever --num-fewshot", task.task_name)
            elif num_fewshot is not None or usual is None:
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
            task.build_all_requests(limit=1)  # what is wrong with its text is found here
    except Exception as error:  # a task file names functions and templates of its own, which may raise anything
        reason = f"{type(error).__name__}: {str(error).strip() or 'no word of it'}".splitlines()[0]
        fetched = isinstance(error, OSError) or "Couldn't" in reason
        hint = "; what a task fetches over the network is fetched once and kept" if fetched else ""
        raise ValueError(f"evaluate: {', '.join(names)} cannot be asked: {reason}{hint}") from error
    return tasks


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, lm-eval says nothing of what a task file leaves to it, and draws no bars: into pipes it would, too."""
    from lm_eval.api import task

    log = logging.getLogger("lm_eval")
    level, bar = log.level, task.tqdm
    log.setLevel(logging.ERROR)
    task.tqdm = partial(bar, disable=True)
    task.datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        task.tqdm = bar


def make_lines(results: Any) -> list[str]:
    """lm-eval's own table of results, in Markdown, and that of groups where there are any."""
    from lm_eval.utils import make_table

    lines = make_table(results).splitlines()
    return [*lines, "", *make_table(results, "groups").splitlines()] if results.get("groups") else lines


def _checked(folder: Path) -> Path:
    """A folder whose task files can all be read: lm-eval passes over the others without a word."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not folder.is_dir():
        raise FileNotFoundError(f"evaluate: --include-path {folder}: no such folder")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise ValueError(f"evaluate: --include-path {folder} holds no task file (*.yaml)")
    for file in files:
        try:
            load_yaml(file, resolve_func=False, recursive=True)
        except Exception as error:  # of the library that reads YAML, or of a file that it includes
            reason = " ".join(str(error).split())
            raise ValueError(f"evaluate: {file} cannot be read: {reason}") from None
    return folder


def _find(name: str, manager: Any) -> list[str]:
    """What a name stands for: a task, group or tag, a file, or all that a pattern fits; nothing if it is unknown."""
    if name in manager.task_index or (name.endswith(".yaml") and Path(name).is_file()):
        return [name]
    return manager.match_tasks([name]) if set(name) & set("*?[") else []


def _is_group(spec: str, manager: Any) -> bool:
    """Whether a name is of several tasks, which may be lm-eval's own."""
    entry = manager.task_index.get(spec)
    return entry is not None and entry.kind.name == "GROUP"
