"""Importing the library is cheap: no optional package is loaded, no device is touched; nor does a command start slowly."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polarspike

# fmt: off
OPTIONAL = ["matplotlib", "mlxtend", "nir", "onnx", "onnxruntime", "openvino", "sklearn", "spikingjelly", "timm", "tonic",
            "torchvision"]
# fmt: on
MODULES = sorted(Path(polarspike.__file__).parent.rglob("*.py"))

PROGRAM = f"""
import sys
import torch
before = set(sys.modules)
state = torch.get_rng_state()
import polarspike
loaded = sorted(set({OPTIONAL!r}) & (set(sys.modules) - before))
assert not loaded, f"import polarspike loads {{loaded}}"
assert not torch.cuda.is_initialized(), "import polarspike initializes CUDA"
assert torch.equal(state, torch.get_rng_state()), "import polarspike draws random numbers"
import polarspike.cli.commands
assert "torch._dynamo" not in sys.modules, "the command line loads torch's compiler"
"""


def failure_of(program: str) -> str:
    """The standard error of a fresh interpreter that runs ``program``; empty if it succeeded."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) or done.stderr
    return done.stderr if done.returncode else ""


def imported_at_once(nodes: list[ast.stmt]) -> Iterator[str]:
    """Top-level packages that the statements import when they run, functions not called, type checking off."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imported_at_once(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from imported_at_once(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from imported_at_once(handler.body)


def test_imports_are_cheap() -> None:
    assert failure_of(PROGRAM) == ""


@pytest.mark.slow
def test_a_costly_import_would_be_seen() -> None:
    assert "loads ['sklearn']" in failure_of(PROGRAM.replace("import polarspike\n", "import polarspike, sklearn\n"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_imports_an_optional_package_at_once(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not set(imported_at_once(tree.body)) & set(OPTIONAL)


def test_imports_inside_functions_and_type_checks_are_told_apart() -> None:
    source = """
try:
    import timm
except ImportError:
    import onnx.helper
if TYPE_CHECKING:
    import nir
else:
    from tonic import io
def late():
    import matplotlib
class Early:
    from sklearn import datasets
"""
    assert sorted(imported_at_once(ast.parse(source).body)) == ["onnx", "sklearn", "timm", "tonic"]
