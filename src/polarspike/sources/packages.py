"""Networks of torchvision and timm by name, without their weights: nothing is downloaded."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from polarspike.data import Normalization
from polarspike.errors import MissingExtraError, SpecError
from polarspike.sources.preprocessing import Preprocessing

PACKAGES = ("torchvision", "timm")
# Their own initialization draws millions of truncated normals, only for the weights to replace them.
_SLOW_START = ("googlenet", "inception_v3")


def is_torchvision(name: str) -> bool:
    """Whether torchvision is installed and has a network of this name."""
    try:
        from torchvision import models
    except ImportError:
        return False
    return name in models.list_models()


def from_torchvision(name: str, options: Mapping[str, Any], *, initialize: bool) -> nn.Module:
    """A network of torchvision, as its builder makes it.

    Args:
        name: one of ``torchvision.models.list_models()``.
        options: of the builder, for instance ``num_classes`` or ``image_size``.
        initialize: whether its initial weights are going to be used.

    Raises:
        MissingExtraError: torchvision is not installed.
        SpecError: an unknown name or option.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    _require_known(name, models.list_models(), "torchvision")
    builder = models.get_model_builder(name)
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        fixed["weights_backbone"] = None  # its default would be downloaded
    if name in _SLOW_START:
        fixed["init_weights"] = initialize
    return _built(f"torchvision:{name}", builder, fixed, options)


def from_timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A network of timm, as its builder makes it.

    Args:
        name: one of ``timm.list_models()``, with or without the tag of its weights behind a dot.
        options: of the builder, for instance ``num_classes`` or ``img_size``.

    Raises:
        MissingExtraError: timm is not installed.
        SpecError: an unknown name or option.
    """
    timm = _timm()
    _require_known(name.partition(".")[0], timm.list_models(), "timm")
    return _built(f"timm:{name}", timm.create_model, {"model_name": name, "pretrained": False}, options)


def preprocessing_of_torchvision(name: str) -> Preprocessing:
    """How torchvision's published weights of a network want their images; empty where it publishes none."""
    from torchvision import models

    try:
        wanted = models.get_model_weights(name).DEFAULT.transforms()
        mean, std = tuple(wanted.mean), tuple(wanted.std)
    except (AttributeError, ValueError):  # detection takes images of any size, as they are
        return Preprocessing()
    if not hasattr(wanted, "crop_size"):  # segmentation
        return Preprocessing(normalization=Normalization(mean, std))
    side = wanted.crop_size[0]
    return Preprocessing((3, side, side), Normalization(mean, std), min(1.0, side / wanted.resize_size[0]))


def preprocessing_of_timm(name: str) -> Preprocessing:
    """How timm's published weights of a network want their images; empty where it says nothing."""
    known = _timm().get_pretrained_cfg(name, allow_unregistered=True)
    if known is None:
        return Preprocessing()
    channels, height, width = known.input_size
    return Preprocessing((channels, height, width), Normalization(tuple(known.mean), tuple(known.std)), known.crop_pct)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "vision") from error
    return timm


def _require_known(name: str, known: list[str], package: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; the closest: {', '.join(close)}" if close else ""
        raise SpecError(f"{package} has no network {name!r} among its {len(known)}{hint}")


def _built(reference: str, build: Any, fixed: dict[str, Any], options: Mapping[str, Any]) -> nn.Module:
    if clash := sorted({*options} & {*fixed}):
        raise SpecError(f"{reference}: the options {clash} are set here, so that nothing is downloaded; leave them out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initial weights that are replaced
            model = build(**fixed, **options)
    except Exception as error:  # whatever the package makes of the options
        given = f" with the options {dict(options)}" if options else ""
        raise SpecError(f"{reference}: cannot be built{given}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise SpecError(f"{reference}: expected an nn.Module, got {type(model).__name__}")
    return model
