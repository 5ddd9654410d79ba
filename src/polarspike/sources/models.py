"""From a reference to a float network: what the first argument of the command line names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polarspike.errors import SpecError
from polarspike.sources.exported import example_shape, load_exported
from polarspike.sources.factories import from_factory
from polarspike.sources.packages import (
    PACKAGES,
    from_timm,
    from_torchvision,
    is_torchvision,
    preprocessing_of_timm,
    preprocessing_of_torchvision,
)
from polarspike.sources.preprocessing import Preprocessing
from polarspike.sources.weights import Say, Weights, fit_weights, read_weights, renamed, silent

FORMS = "torchvision:NAME, timm:NAME, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, or PROGRAM.pt2 (what torch.export.save wrote)"
#: How the names of files end that hold weights alone, without the network that they belong to.
WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin")


def build(
    reference: str,
    weights: Path | Weights | None = None,
    *,
    random_weights: bool = False,
    options: Mapping[str, Any] | None = None,
    say: Say = silent,
) -> nn.Module:
    """A float network in evaluation mode, from a name, a factory or an exported program, with weights from a local file.

    ``num_classes`` of a named network is what the weights show, unless the options say it.

    Args:
        reference: ``torchvision:resnet18`` or the bare name, ``timm:vit_small_patch16_224``, ``path/to/file.py:factory``
            or ``package.module:factory`` (the user's own code, which is executed), or ``program.pt2``.
        weights: a ``.safetensors`` file or a state dict that ``torch.save`` wrote, or what was read of one; an exported
            program has its own.
        random_weights: without ``weights``, take the network as it is built: at random, or with what a factory loaded.
        options: keyword arguments of the network's builder or the factory.
        say: told what was decided: entries and prefixes of the weights, the number of classes.

    Raises:
        SpecError: an unknown name, a factory that fails, an option that does not exist, or neither weights nor the
            permission to do without.
        CheckpointError: the weights do not fit, or are no file of weights; an exported program that cannot be loaded.
        MissingExtraError: the package of that name is not installed.
    """
    given = dict(options or {})
    if reference.endswith(".pt2"):
        if weights is not None or random_weights or given:
            raise SpecError(f"{reference}: an exported program holds its weights; leave weights and options out")
        return load_exported(Path(reference))
    make = _maker(reference, initialize=weights is None)
    if weights is None and not random_weights:
        raise SpecError(
            f"{reference}: expected weights, a local .safetensors, .pth or .pt file (nothing is downloaded); to try the "
            "network as it is built, ask for random weights (--random-weights)"
        )
    if weights is None:
        return make(given).eval()
    # First: building a large network takes longer.
    held = weights.tensors if isinstance(weights, Weights) else read_weights(weights, say)
    model = make(given)
    if "num_classes" not in given and _package(reference):
        classes = _classes(model, renamed(model, held))
        if classes is not None:
            say(f"weights: {classes} classes")
            model = make({**given, "num_classes": classes})
    return fit_weights(model, held, weights.path if isinstance(weights, Weights) else weights, reference, say).eval()


def preprocessing(reference: str, options: Mapping[str, Any] | None = None) -> Preprocessing:
    """What is known about the images of a network: from its package, or from the example of an exported program.

    Raises: what :func:`build` raises.
    """
    if reference.endswith(".pt2"):
        return Preprocessing(example_shape(Path(reference)))
    package, name = _package(reference), reference.rpartition(":")[2]
    if package is None:
        return Preprocessing()
    known = preprocessing_of_timm(name) if package == "timm" else preprocessing_of_torchvision(name)
    side = (options or {}).get("image_size" if package == "torchvision" else "img_size")
    if isinstance(side, int) and known.shape is not None:
        known = dataclasses.replace(known, shape=(known.shape[0], side, side))
    return known


def _package(reference: str) -> str | None:
    prefix, colon, _ = reference.partition(":")
    if colon:
        return prefix if prefix in PACKAGES else None
    return "torchvision" if is_torchvision(reference) else None


def _maker(reference: str, *, initialize: bool) -> Callable[[Mapping[str, Any]], nn.Module]:
    """What builds the network from options; refuses what no form of reference describes."""
    prefix, colon, name = reference.partition(":")
    if prefix == "timm" and colon:
        return lambda options: from_timm(name, options)
    if prefix == "torchvision" and colon:
        return lambda options: from_torchvision(name, options, initialize=initialize)
    if colon:
        return lambda options: from_factory(reference, options)
    if Path(reference).suffix in (*WEIGHT_FILES, ".safetensors"):
        raise SpecError(
            f"{reference}: this names a file of weights, which does not say what network they belong to; expected "
            f"{FORMS}, and the file as weights (--weights {reference})"
        )
    if Path(reference).suffix == ".py":
        raise SpecError(f"{reference}: expected the name of a factory behind the file, such as {reference}:create")
    return lambda options: from_torchvision(reference, options, initialize=initialize)


def _classes(model: nn.Module, held: Mapping[str, Tensor]) -> int | None:
    """The number of classes that the weights show: the one other length of the first dimension where shapes differ."""
    different = [
        (tuple(value.shape), tuple(held[name].shape))
        for name, value in model.state_dict().items()
        if name in held and held[name].shape != value.shape
    ]
    lengths = {(built[:1], found[:1]) for built, found in different if built[1:] == found[1:]}
    if len(lengths) != 1 or any(built[1:] != found[1:] for built, found in different):
        return None
    (found,) = (found for _, found in lengths)
    return found[0] if found else None
