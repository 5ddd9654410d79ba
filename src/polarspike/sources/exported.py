"""A network from ``program.pt2``, the file of :func:`torch.export.save`, of which nothing is executed.

``torch.export.load`` of PyTorch 2.13 and 2.14 would execute what a file holds in five places, so the archive is checked
first, with torch's own reader and on the same bytes:

* tensors marked ``use_pickle``, custom and opaque objects go through unrestricted pickle: refused;
* the sample inputs go through ``torch.load(weights_only=True)``, but through unrestricted pickle if that fails: they must
  pass the first;
* compiled libraries (``data/aotinductor``) are loaded: refused;
* expressions of sizes are evaluated as Python by sympy, and names become Python source: only words and arithmetic pass;
* an operator may be named as any attribute of ``torch``: only tensor operators pass.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polarspike.capture.programs import input_sizes, model_of
from polarspike.errors import CaptureError, CheckpointError

_RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/.*|archive_format|archive_version|byteorder|\.data/.*",
    re.ASCII,
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file|save|_print|warn)\w+\.\w+|torch\.sym_\w+|math\.trunc|_operator\."
    r"(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift|getitem)",
    re.ASCII,
)
_WORD = re.compile(r"[\w.\-]*", re.ASCII)  # nothing that could call anything
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name,
               ast.Constant, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)  # fmt: skip
_FUNCTIONS = frozenset({"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "And", "Or",
                        "Not", "Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan",
                        "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt",
                        "TruncToFloat", "RoundToInt", "RoundDecimal", "ToFloat", "IntTrueDiv", "FloatTrueDiv",
                        "PowByNatural", "FloatPow", "ModularIndexing", "Where", "Identity", "LShift", "RShift"})  # fmt: skip
_TREES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
# Neither evaluated nor turned into source: notes, values of arguments (a mode, an einsum), and guards, which
# module(check_guards=True) alone would.
_PROSE = frozenset({"metadata", "torch_version", "as_string", "as_strings", "guards_code"})


def load_exported(path: Path) -> nn.Module:
    """The module of an exported program, with its weights, after a check that nothing in the file can be executed.

    Args:
        path: what ``torch.export.save`` wrote.

    Raises:
        CheckpointError: no such file, not an exported program, one that holds pickled Python objects or anything else
            that would be executed, one that this release of torch cannot read, or one of a fixed batch size.
    """
    try:
        return model_of(_load(path))
    except CaptureError as error:
        raise CheckpointError(f"{path}: {error}") from error


def example_shape(path: Path) -> tuple[int, int, int] | None:
    """(C, H, W) of a program's input, or None if it takes several or other inputs, or images of any size.

    Raises: what :func:`load_exported` raises.
    """
    inputs = input_sizes(load_exported(path))
    if len(inputs) != 1:
        return None
    sizes = next(iter(inputs.values()))[1:]
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes):
        return None
    return sizes[0], sizes[1], sizes[2]


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected an exported program, found {'a folder' if path.is_dir() else 'nothing'}"
        )
    # Loads torch's compiler, which no other file needs: two seconds of every command's start.
    from torch.export.pt2_archive import PT2ArchiveReader

    content = path.read_bytes()
    try:
        reader = PT2ArchiveReader(io.BytesIO(content))
        records = reader.get_file_names()
        old = "version" in zipfile.ZipFile(io.BytesIO(content)).namelist()
    except Exception as error:  # whatever a file of another kind makes torch raise
        raise CheckpointError(
            f"{path}: not a complete exported program; write it with torch.export.save ({_short(error)})"
        ) from error
    if old:  # a format that torch 2.8 replaced, and whose parts are pickles
        raise _refusal(path, "holds pickled Python objects (the format of torch 2.7)")
    _check(path, reader, records)
    causes: list[BaseException] = []
    try:
        with _collecting(causes):
            return torch.export.load(io.BytesIO(content))
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = _short(causes[0] if causes else error)
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read this exported program ({reason}); export it again on the "
            "CPU with this release"
        ) from error


@contextlib.contextmanager
def _collecting(causes: list[BaseException]) -> Iterator[None]:
    """Keep the reason that torch logs with a traceback, before it raises an error that says to look there."""

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            causes.append(record.exc_info[1])
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _check(path: Path, reader: Any, records: list[str]) -> None:
    """Refuse an archive of which anything would be executed."""
    for record in records:
        if re.match(r"data/weights/.*\.pt$|data/constants/(.*\.pt$|custom_obj|opaque_obj)", record):
            raise _refusal(path, f"holds pickled Python objects ({record})")
        if not _RECORDS.fullmatch(record):
            raise _refusal(path, f"holds more than a program, its weights and constants: {record}")
    if "models/model.json" not in records:
        raise CheckpointError(f"{path}: expected an exported program named 'model', found none")
    try:
        for record in (record for record in records if record.endswith("_config.json")):
            for name, entry in json.loads(reader.read_string(record))["config"].items():
                plain = str(entry["path_name"]).startswith(("weight_", "tensor_"))
                if entry["use_pickle"] is not False or not plain:
                    raise _refusal(path, f"holds pickled Python objects ({name!r} in {record})")
        program = json.loads(reader.read_string("models/model.json"))
        samples = reader.read_bytes("data/sample_inputs/model.pt")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged ({_short(error)}); export it again") from error
    if samples:
        try:
            torch.load(io.BytesIO(samples), weights_only=True)
        except Exception as error:  # torch would then unpickle it without restriction
            raise _refusal(path, "holds pickled Python objects (its sample inputs)") from error
    _check_strings(path, program, "")


def _check_strings(path: Path, value: Any, key: str) -> None:
    """Refuse a string of a program that could be executed; what a string may say depends on the field it stands in."""
    if key in _PROSE:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            _require(path, "name", name, _is_word(name))
            _check_strings(path, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(path, inner, key)
    elif isinstance(value, str):
        _require(path, key or "string", value, _RULES.get(key, _is_word)(value))


def _is_arithmetic(text: str) -> bool:
    """Whether an expression has numbers, words, operators and known functions of them only."""
    if not text.isascii():
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC) or (isinstance(node, ast.Name) and "__" in node.id):
            return False
        if isinstance(node, ast.Constant) and not isinstance(node.value, int | float) and not _is_word(str(node.value)):
            return False  # sympy evaluates strings inside of an expression, too
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
            return False
    return True


def _is_tree(text: str) -> bool:
    """Whether a description of nested inputs or outputs has tuples, lists and dicts only: others import modules."""

    def holds(node: Any) -> bool:
        context = json.loads(node["context"]) if isinstance(node["context"], str) else node["context"]
        keys = context if isinstance(context, list) else [context]
        return (
            node["type"] in _TREES
            and all(key is None or isinstance(key, int) or bool(_WORD.fullmatch(key)) for key in keys)
            and all(holds(child) for child in node["children_spec"])
        )

    try:
        return holds(json.loads(text)[1])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False


def _is_word(text: str) -> bool:
    return bool(_WORD.fullmatch(text))


def _is_target(text: str) -> bool:
    return bool(_TARGET.fullmatch(text))


_RULES: dict[str, Callable[[str], bool]] = {
    "target": _is_target,
    "as_operator": _is_target,
    "expr_str": _is_arithmetic,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
}


def _require(path: Path, what: str, text: str, holds: bool) -> None:
    if not holds:
        repair = " (an operator of another library, or control flow)" if what in ("target", "as_operator") else ""
        raise _refusal(path, f"its {what} {text[:80]!r} is not one that can be read without executing it{repair}")


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {reason}; nothing of it was executed. Export plain tensors with this release of torch, or give the Python "
        "factory and a state dict"
    )


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
