"""The registry of networks: a builder's function name is the network's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from polarspike.common.checks import is_integer
from polarspike.errors import SpecError, closest

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelEntry:
    """One network of the registry.

    Args:
        name: what :func:`create` takes.
        summary: the first line of the builder's docstring.
        image_size: side in pixels of the smallest input that exercises the whole network at its default options.
        build: the registered function.
    """

    name: str
    summary: str
    image_size: int
    build: Builder

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that :func:`create` accepts beside ``num_classes`` and ``in_channels``."""
        known = inspect.signature(self.build).parameters
        return tuple(option for option in known if option not in ("num_classes", "in_channels"))

    @property
    def needs_image_size(self) -> bool:
        """Whether the network is built for one input size, which then is its option ``image_size``."""
        return "image_size" in self.options

    def example_shape(self, in_channels: int = 3, batch: int = 2) -> tuple[int, int, int, int]:
        """Shape (batch, in_channels, H, W) of a small input that the network takes at its default options."""
        return batch, in_channels, self.image_size, self.image_size


_entries: dict[str, ModelEntry] = {}


def register(*, image_size: int) -> Callable[[Builder], Builder]:
    """Add a builder to the registry under its own function name.

    Args:
        image_size: see :class:`ModelEntry`.

    Raises:
        SpecError: the name is taken, or the builder lacks ``num_classes``, ``in_channels`` or a docstring.
    """

    def add(build: Builder) -> Builder:
        name = build.__name__
        if name in _entries:
            taken = _entries[name].build
            raise SpecError(
                f"the model name {name!r} is already registered by {taken.__module__}.{taken.__qualname__}; "
                f"rename the function in {build.__module__}"
            )
        if missing := [arg for arg in ("num_classes", "in_channels") if arg not in inspect.signature(build).parameters]:
            raise SpecError(f"the builder of model {name!r} must take {' and '.join(missing)}")
        summary = (inspect.getdoc(build) or "").partition("\n")[0]
        if not summary:
            raise SpecError(f"the builder of model {name!r} needs a docstring; its first line is the model's summary")
        _entries[name] = ModelEntry(name, summary, image_size, build)
        return build

    return add


def names() -> list[str]:
    """Names of all registered networks, sorted."""
    return sorted(_entries)


def describe(name: str) -> ModelEntry:
    """The entry of one network.

    Raises:
        SpecError: no network has that name; the message lists the names and the closest one.
    """
    if entry := _entries.get(name):
        return entry
    raise SpecError(f"unknown model {name!r}; known: {', '.join(names())}{closest(name, _entries)}")


def create(name: str, *, num_classes: int, in_channels: int = 3, **options: object) -> nn.Module:
    """A freshly initialized network; its weights come from torch's global generator.

    Args:
        name: one of :func:`names`.
        num_classes: length of the output, (N, num_classes).
        in_channels: C of the input, (N, C, H, W).
        **options: what the builder takes, for instance ``width``; ``describe(name).options`` lists them.

    Raises:
        SpecError: an unknown name or option, or a value out of range.
    """
    entry = describe(name)
    if unknown := sorted(set(options) - set(entry.options)):
        raise SpecError(f"model {name!r} has no option {', '.join(unknown)}; its options: {', '.join(entry.options)}")
    require_positive(name, num_classes=num_classes, in_channels=in_channels)
    return entry.build(num_classes=num_classes, in_channels=in_channels, **options)


def require_positive(model: str, **values: object) -> None:
    """Refuse every value that is not an integer of at least 1, by its name."""
    for name, value in values.items():
        if not is_integer(value, 1):
            raise SpecError(f"model {model!r}: expected {name} to be an integer of at least 1, got {value!r}")
