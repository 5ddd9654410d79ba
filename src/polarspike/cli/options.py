"""How specs become options: a field is a flag, its line in the docstring is the help, its value the default.

QuantSpec.positive of the field ``quant``   ->   --quant.positive INT
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from polarspike.errors import SpecError
from polarspike.specs import Spec


class RefusedError(Exception):
    """Carries a SpecError out of the parser, which would print any ValueError in a way of its own."""

    def __init__(self, reason: SpecError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def registry() -> ConstructorRegistry:
    """The rules of tyro, with ours for specs."""
    rules = ConstructorRegistry()
    rules.struct_rule(_spec_rule)
    return rules


def _spec_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    kind = info.type
    if not (isinstance(kind, type) and issubclass(kind, Spec)):
        return None
    start = info.default if isinstance(info.default, kind) else kind()
    hints, lines = typing.get_type_hints(kind), help_lines(kind)
    values = {field.name: getattr(start, field.name) for field in dataclasses.fields(kind)}
    # A mapping (QuantSpec.overrides) has no good form as a flag: it stays what the recipe says.
    kept = {name: value for name, value in values.items() if isinstance(value, Mapping)}

    def build(**given: Any) -> Spec:
        try:
            return kind(**kept, **given)
        except SpecError as error:
            raise RefusedError(error) from error

    return StructConstructorSpec(
        instantiate=build,
        fields=tuple(
            StructFieldSpec(name=name, type=_typed(hints[name]), default=value, helptext=lines.get(name))
            for name, value in values.items()
            if name not in kept
        ),
    )


def _typed(hint: Any) -> Any:
    # "--augment False" reads better below a help that says what True means than "--no-augment" does.
    return tyro.conf.FlagConversionOff[bool] if hint is bool else hint


def help_lines(kind: type) -> dict[str, str]:
    """The ``Args:`` of a class's docstring as plain lines, by name.

    >>> from polarspike.training_spec import TrainSpec
    >>> help_lines(TrainSpec)["optimizer"]
    '"sgd" (Nesterov momentum) or "adamw".'
    """
    parsed = docstring_parser.parse(kind.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    return {entry.arg_name: _plain(entry.description or "") for entry in parsed.params}


def _plain(text: str) -> str:
    """Without reStructuredText: roles, double backticks, line breaks."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    return re.sub(r"\s+", " ", text.replace("``", ""))
