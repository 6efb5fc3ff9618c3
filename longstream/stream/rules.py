"""What a step rule is, and the registry of them: how each class of module becomes instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from longstream.stream.program import Program

Rule = TypeVar("Rule", bound=Callable[..., Any])

STEP_RULES: dict[type[nn.Module], Callable[..., None]] = {}
MODEL_RULES: dict[type[nn.Module], Callable[..., ModelStep]] = {}


class CannotCompile(ValueError):
    """A part of a model that has no native step: where it is, what it is and why."""


@dataclass(frozen=True)
class ModelStep:
    """What a rule for a whole model says of it beside its instructions.

    Attributes:
        out:          offset of the result in the scratch.
        output_shape: of one row's result.
        fingerprint:  of the model's states.
        embedding:    (vocabulary, n_in), for a model whose inputs are tokens: the rows that the program is given.
        vocab_size:   of such a model: tokens lie in [0, vocab_size).
    """

    out: int
    output_shape: tuple[int, ...]
    fingerprint: str
    embedding: Tensor | None = None
    vocab_size: int | None = None


def step_rule(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Decorator: this function writes the step of modules of just these classes (not of classes derived from them).

    It is called as ``rule(program, module, in_, out, path, **context)`` and adds the instructions that read the
    module's input at the offset ``in_`` of the scratch and write its output to ``out``. A rule may write over its
    input only if it says so. What the context is depends on the kind of module: mixers and MLPs have ``add`` (add to
    ``out`` instead), mixers with forget gates ``lower_bound``, norms ``gate`` (an offset; the output is multiplied by
    its SiLU).
    """

    def register(rule: Rule) -> Rule:
        STEP_RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


def model_rule(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Decorator: this function writes the whole program of models of just these classes, but for its end.

    It is called as ``rule(program, model, path)``, begins with ``program.begin(n_in)`` and returns a `ModelStep`. A
    class whose rule is in a module that nobody needs to have imported names it: ``step_rules = "package.module"``.
    """

    def register(rule: Rule) -> Rule:
        MODEL_RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


def apply_rule(program: Program, module: nn.Module, in_: int, out: int, path: str, **context: Any) -> None:
    """Write the step of a part of a model by the rule of its class."""
    find_rule(STEP_RULES, module, path)(program, module, in_, out, path, **context)


def find_rule(rules: dict[type[nn.Module], Callable[..., Any]], module: nn.Module, path: str) -> Any:
    """The rule of exactly this class; a class derived from one with a rule may compute something else."""
    if type(module) not in rules and isinstance(name := getattr(module, "step_rules", None), str):
        import_module(name)
    if type(module) in rules:
        return rules[type(module)]
    known = ", ".join(sorted(kind.__name__ for kind in rules))
    base = next((kind for kind in type(module).__mro__ if kind in rules), None)
    why = f"there is no native step for it; there is for {known}"
    if base is not None:
        why = f"it is derived from {base.__name__} and may compute something else, so its native step is not used"
    refuse(path, module, why)


def refuse(path: str, module: nn.Module, why: str) -> NoReturn:
    """Raise `CannotCompile` for a part of the model."""
    raise CannotCompile(f"compile_step: {path or 'the model'} ({type(module).__name__}): {why}")


def join(path: str, name: str) -> str:
    """The path of a submodule."""
    return f"{path}.{name}" if path else name
