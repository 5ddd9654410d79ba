"""The float network that an experiment starts from: ours, or of timm or torchvision; fresh, or with trained weights."""

from __future__ import annotations

import dataclasses
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
    model: str, shape: data.Shape, options: Mapping[str, Any] | None = None, weights: sources.Weights | None = None
) -> nn.Module:
    """A float network for images of this shape and as many classes, with fresh weights from torch's global generator.

    A network of a package is built for its own size of images if it takes these, and for their size if it has an option.

    Args:
        model: a name of :mod:`polarspike.models`, ``timm:NAME`` or ``torchvision:NAME``.
        shape: of the images.
        options: of the builder.
        weights: of a file, None for fresh ones.

    Raises:
        SpecError: an unknown name or option, or images that the network cannot take.
        CheckpointError: the weights do not fit.
        MissingExtraError: the package is not installed.
    """
    package, given = package_of(model), dict(options or {})
    if package is not None:
        return _of_package(package, model, shape, given, weights)
    if models.describe(model).needs_image_size:
        given["image_size"] = (shape.height, shape.width)
    made = models.create(model, num_classes=shape.classes, in_channels=shape.channels, **given)
    if weights is None:
        return made
    return sources.fit_weights(made, weights.tensors, weights.path, model)


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
    package: str, model: str, shape: data.Shape, options: dict[str, Any], weights: sources.Weights | None
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
    for more in ({}, side) if side else ({},):
        try:
            made = sources.build(
                model,
                weights,
                random_weights=weights is None,
                options={**options, **more},
            )
        except PolarspikeError as error:
            refusals.append(error)
            continue
        if not (refusal := _refusal(made, shape)):
            return made
        refusals.append(refusal)
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
