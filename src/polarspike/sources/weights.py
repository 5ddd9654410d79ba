"""Weights from a local file, and a model that takes them: nothing of the file is executed.

A ``.safetensors`` file holds tensors alone. Everything else goes through ``torch.load(weights_only=True)``, which refuses
a pickle that names anything but tensors and plain containers before it runs.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from polarspike.checkpoint import kind_of
from polarspike.errors import CheckpointError

# What training scripts call the state dict inside of a larger checkpoint, the most usual first.
_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "ema_state_dict",
            "model_ema")  # fmt: skip
# What wrappers put before every name: DataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 3

Say = Callable[[str], None]


def silent(message: str) -> None:
    """Say nothing."""


def read_weights(path: Path, say: Say = silent) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, out of the entry of a larger checkpoint where they stand in one.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save(model.state_dict(), path)`` wrote.
        say: told which entry was taken.

    Raises:
        CheckpointError: no such file, not a file of weights, or one that holds pickled Python objects.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a file of weights, found {'a folder' if path.is_dir() else 'nothing'}; "
            "give a local .safetensors, .pth or .pt file (nothing is downloaded)"
        )
    if path.suffix == ".safetensors":
        try:
            if kind := kind_of(path):
                raise CheckpointError(
                    f"{path}: expected the weights of a float network, the file holds a {kind} network of polarspike, whose "
                    "weights belong to its sites; give what the float network was saved as, or use this file as it is: "
                    f"polarspike evaluate {path}"
                )
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a complete safetensors file ({error}); copy it again, or give it its own ending"
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled Python objects, or is damaged; it was not executed. Expected a state dict alone: where "
            f"you trust the file, write it again with torch.save(model.state_dict(), ...) ({_first_line(error)})"
        ) from error
    except Exception as error:  # whatever a file of another kind makes torch raise
        raise CheckpointError(
            f"{path}: expected a file of weights (.safetensors, or a state dict that torch.save wrote), which it is not: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    return _unwrapped(path, content, say)


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a file, read once.

    Args:
        path: of the file.
        tensors: by name, as :func:`read_weights` finds them.
        sha256: the digest of the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Those of a file.

        Raises:
            CheckpointError: as for :func:`read_weights`.
        """
        return cls(path, read_weights(path), sha256(path))


def fit_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: Path,
    reference: str,
    say: Say = silent,
    fresh: Collection[str] = (),
) -> nn.Module:
    """Load the weights into the model, in place, if every one of them fits; return the model.

    Args:
        model: what takes them.
        weights: of :func:`read_weights`.
        path: where they come from, for the message.
        reference: what the model was built from, for the message.
        say: told which prefix was left out.
        fresh: names of the model that keep its own values, whatever the file has for them.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ; the message lists the first few of each.
    """
    held = renamed(model, weights, say)
    wanted = model.state_dict()
    faults = []
    for kind, names in misfits(model, held, fresh).items():
        shown = names[:_SHOWN]
        if kind == "of another shape":
            shown = [f"{name} (model {tuple(wanted[name].shape)}, file {tuple(held[name].shape)})" for name in shown]
        if names:
            faults.append(f"{len(names)} {kind}: {', '.join(shown)}{' and more' if len(names) > _SHOWN else ''}")
    if faults:
        raise CheckpointError(
            f"{path}: does not fit {reference}, which expects {len(wanted)} tensors; the file holds {len(held)}, "
            f"{'; '.join(faults)}. Give the network that these weights were trained in, with its options"
        )
    model.load_state_dict({name: value for name, value in held.items() if name not in fresh}, strict=False)
    return model


def misfits(model: nn.Module, held: Mapping[str, Tensor], fresh: Collection[str] = ()) -> dict[str, list[str]]:
    """Names that keep the weights of :func:`renamed` from fitting, by what is wrong; those in ``fresh`` are right anyhow."""
    wanted = {name: value.shape for name, value in model.state_dict().items() if name not in fresh}
    return {
        # A counter that evaluation does not read; files that are older than it lack it.
        "missing": [name for name in wanted if name not in held and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in held if name not in wanted and name not in fresh],
        "of another shape": [name for name in wanted if name in held and held[name].shape != wanted[name]],
    }


def renamed(model: nn.Module, weights: Mapping[str, Tensor], say: Say = silent) -> dict[str, Tensor]:
    """The weights without a wrapper's prefix, and with the names that the model has for them."""
    names = list(model.state_dict())
    held = dict(weights)
    while prefix := next((p for p in _PREFIXES if _is_foreign(p, held, names)), None):
        say(f"weights: the prefix {prefix!r} is left out of every name")
        held = {name.removeprefix(prefix): value for name, value in held.items()}
    if not set(held) <= set(names):
        # torchvision's published DenseNets still say "norm.1", which no module may be called any more.
        held = {_DENSE.sub(r"\1\2", name): value for name, value in held.items()}
    return held


_DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.)")


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_foreign(prefix: str, held: Mapping[str, Tensor], names: list[str]) -> bool:
    every = bool(held) and all(name.startswith(prefix) for name in held)
    return every and not all(name.startswith(prefix) for name in names)


def _unwrapped(path: Path, content: object, say: Say) -> dict[str, Tensor]:
    """The first mapping of tensors in the usual entries of a checkpoint."""
    way: list[str] = []
    while isinstance(content, Mapping):
        if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
            if way:
                say(f"weights: taken from the entry {'.'.join(way)!r} of the file")
            return dict(content)
        entry = next((name for name in _ENTRIES if isinstance(content.get(name), Mapping)), None)
        if entry is None:
            break
        way.append(entry)
        content = content[entry]
    found = f"entries {sorted(map(str, content))[:6]}" if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path}: expected a state dict (names to tensors), alone or under one of {', '.join(_ENTRIES[:5])}, got {found}"
        f"{' in ' + repr('.'.join(way)) if way else ''}; write model.state_dict() alone"
    )


def _first_line(error: Exception) -> str:
    """What torch says, without its advice to trust the file."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript archive"
    named = re.search(r"(Unsupported (?:global|class|operand)[^\n]*?)(?: was not an allowed global|\n|$)", text)
    return named.group(1) if named else text.strip().partition("\n")[0]
