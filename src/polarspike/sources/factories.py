"""A network from the user's own Python code: ``path/to/file.py:factory`` or ``package.module:factory``.

This code is executed, because the user names it; nothing else in this package executes anything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from polarspike.errors import SpecError, closest


def from_factory(reference: str, options: Mapping[str, Any]) -> nn.Module:
    """Run the code that the reference names, and call the factory with the options.

    Args:
        reference: a Python file or an importable module, a colon, and the name of a function, a class or a module object.
        options: keyword arguments of the factory.

    Raises:
        SpecError: there is no such file, module or name, the code fails, or what it returns is no ``nn.Module``.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise SpecError(
            f"{reference}: expected FILE.py:FACTORY or PACKAGE.MODULE:FACTORY, where FACTORY is the name of a function"
        )
    module = _guarded(reference, "the code", lambda: _module(where))
    if not hasattr(module, name):
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        hint = closest(name, names)
        raise SpecError(f"{reference}: {where} has no {name!r}; callable there: {', '.join(names[:8]) or 'none'}{hint}")
    made = getattr(module, name)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise SpecError(f"{reference}: expected a function that returns an nn.Module, got {type(made).__name__}")
        made = _guarded(reference, "the factory", lambda: getattr(module, name)(**options))
    if not isinstance(made, nn.Module):
        raise SpecError(f"{reference}: expected the factory to return an nn.Module, it returned {type(made).__name__}")
    return made


def _module(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix != ".py":
        with _importing_from(Path.cwd()):
            return importlib.import_module(where)
    if not path.is_file():
        raise SpecError(f"{where}: expected a Python file, found {'a folder' if path.is_dir() else 'nothing'}")
    name = f"_polarspike_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # cannot be for a .py file
        raise SpecError(f"{where}: Python cannot load it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and deepcopy look a class's module up there
    try:
        with _importing_from(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let the user's code import what lies beside it, as if it were run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _guarded(reference: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except SpecError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise SpecError(f"{reference}: {what} fails with {type(error).__name__}: {error}") from error
