"""The float network that an experiment starts from: ours, or of timm or torchvision; fresh, or with trained weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polarspike import data, models, sources
from polarspike.data import Normalization
from polarspike.errors import PolarspikeError, SpecError
from polarspike.sources.packages import PACKAGES
from polarspike.sources.preprocessing import for_channels

# What the builders of either package call the side of an image, and the number of its channels.
_SIDE = {"timm": "img_size", "torchvision": "image_size"}
_CHANNELS = {"timm": "in_chans"}


def package_of(model: str) -> str | None:
    """The package of a network that is named ``timm:NAME`` or ``torchvision:NAME``; None for ours."""
    prefix, colon, _ = model.partition(":")
    return prefix if colon and prefix in PACKAGES else None


def require(model: str, weights: str | None) -> sources.Weights | None:
    """Refuse what can be refused without data: a name that nobody knows, a missing package, a missing file.

    Returns:
        The weights, if a file of them is named.

    Raises:
        SpecError: no network of ours has the name.
        MissingExtraError: the package is not installed.
        CheckpointError: there is no such file of weights, or it holds something else.
    """
    if package_of(model) is None:
        models.describe(model)
    else:
        sources.preprocessing(model)
    return None if weights is None else sources.Weights.read(Path(weights))


def build(
    model: str,
    shape: data.Shape,
    options: Mapping[str, Any] | None = None,
    weights: sources.Weights | None = None,
    *,
    fresh_head: bool = False,
    say: sources.Say = sources.silent,
) -> nn.Module:
    """A float network for images of this shape and as many classes, with fresh weights from torch's global generator.

    A network of a package is built for its own size of images if it takes these, and for their size if it has an option.

    Args:
        model: a name of :mod:`polarspike.models`, ``timm:NAME`` or ``torchvision:NAME``.
        shape: of the images.
        options: of the builder.
        weights: of a file, None for fresh ones.
        fresh_head: leave the file's last layer out, whether it fits or not; everything else has to fit.
        say: told what became of the weights: prefixes, the fresh layer, position embeddings that were resampled.

    Raises:
        SpecError: an unknown name or option, images that the network cannot take, or no single last layer.
        CheckpointError: the weights do not fit; where a fresh head would be enough, the message says so.
        MissingExtraError: the package is not installed.
    """
    package, given = package_of(model), dict(options or {})
    if package is not None:
        return _of_package(package, model, shape, given, weights, fresh_head, say)
    if models.describe(model).needs_image_size:
        given["image_size"] = (shape.height, shape.width)

    def make(classes: int) -> nn.Module:
        return models.create(model, num_classes=classes, in_channels=shape.channels, **given)

    made = make(shape.classes)
    if weights is None:
        return made
    return sources.take_over(made, weights, model, lambda: make(shape.classes + 1), fresh_head=fresh_head, say=say)


def as_trained(dataset: data.AnyDataset, model: str) -> data.AnyDataset:
    """The data set with the scaling, and pictures on disk with the cut, that a package's published weights expect.

    A scaling of three colours says nothing of images of other channels: they keep the data set's.
    """
    if package_of(model) is None:
        return dataset
    known = sources.preprocessing(model)
    changes: dict[str, Any] = {}
    scaling = known.normalization
    if scaling is not None and len({*scaling.mean}) == len({*scaling.std}) == 1:  # the same for every channel
        scaling = Normalization(scaling.mean[:1], scaling.std[:1])
    if scaling is not None and len(scaling.mean) in (1, dataset.in_channels):
        changes["normalization"] = for_channels(scaling, dataset.in_channels)
    if isinstance(dataset, data.StreamedDataset):
        changes["resize"] = max(dataset.size, round(dataset.size / known.crop))
    return dataclasses.replace(dataset, **changes)


def _of_package(
    package: str,
    model: str,
    shape: data.Shape,
    options: dict[str, Any],
    weights: sources.Weights | None,
    fresh_head: bool,
    say: sources.Say,
) -> nn.Module:
    options = {"num_classes": shape.classes, **options}
    if shape.channels != 3:
        if package not in _CHANNELS:
            raise SpecError(
                f"{model}: expected images of 3 channels, got {shape.channels}; take a network of ours or timm"
            )
        options = {_CHANNELS[package]: shape.channels, **options}
    side = {_SIDE[package]: shape.height} if shape.height == shape.width and _SIDE[package] not in options else {}
    refusals: list[PolarspikeError | str] = []
    misfits: list[PolarspikeError] = []
    for more in ({}, side) if side else ({},):
        said: list[str] = []  # of the network that is taken, not of one that refuses the images

        def make(added: int = 0, more: Mapping[str, Any] = more) -> nn.Module:
            classes = options["num_classes"] + added
            return sources.build(model, random_weights=True, options={**options, **more, "num_classes": classes})

        try:
            made = make()
        except PolarspikeError as error:
            refusals.append(error)
            continue
        if said_no := _refusal(made, shape):
            refusals.append(said_no)
            continue
        if weights is None:
            return made
        try:
            another = functools.partial(make, 1)
            sources.take_over(made, weights, model, another, fresh_head=fresh_head, say=said.append)
        except PolarspikeError as error:
            misfits.append(error)
            continue
        for line in said:
            say(line)
        return made
    if misfits:  # a network took the images
        raise misfits[0]
    if isinstance(refusals[0], PolarspikeError):  # of what was asked for itself, not of the size
        raise refusals[0]
    raise SpecError(
        f"{model}: expected a network for images of {shape.channels}x{shape.height}x{shape.width}, it refuses them: "
        f"{refusals[0]}; give its options in a recipe file (Recipe.options), or another network"
    )


@torch.no_grad()
def _refusal(network: nn.Module, shape: data.Shape) -> str:
    """What a network says to images that it cannot take; empty where it answers with scores of the classes."""
    try:
        answer = network.eval()(torch.zeros(2, shape.channels, shape.height, shape.width))
    except Exception as error:  # whatever a foreign network raises
        return str(error).partition("\n")[0] or type(error).__name__
    wanted = (2, shape.classes)
    got = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    return "" if got == wanted else f"expected an answer of shape {wanted}, got {got}"
