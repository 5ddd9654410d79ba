"""What is compared: methods, networks, images and budgets as plain values, and the list of runs that follows from them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from polarspike.baselines.choice import AS_GOOD
from polarspike.baselines.methods import METHODS
from polarspike.baselines.peers import PEERS
from polarspike.baselines.rival import Pooling
from polarspike.common.checks import is_integer, is_not_negative, is_positive, is_within
from polarspike.runs.ledger import as_text
from polarspike.specs import Spec

#: What identifies a run; ``setup`` is a digest of every other setting that its result depends on.
ASKED = ("data", "network", "method", "levels", "trained_steps", "budget", "seed", "setup")
_CHOOSING = ("methods", "levels", "trained_steps", "budgets", "seeds")  # they say which runs, not what a run is
_TRAINING = (
    "data", "model", "width", "options", "float_epochs", "epochs", "rates", "distillation", "averaging", "activity",
    "frames", "limit",
)  # fmt: skip
BUDGETS = ("epochs", "time")


@dataclass(frozen=True)
class Comparison(Spec):
    """What is compared.

    Args:
        data: a dataset of :mod:`polarspike.data`.
        model: a network of :mod:`polarspike.models`.
        width: of its first layer; None for its own default.
        options: further whole numbers that the network is built with, by name.
        methods: of :data:`METHODS` and :data:`PEERS`; ``"ann"`` is the float network.
        levels: codes of quantizers, each a run.
        trained_steps: T of direct training, each a run.
        budgets: of direct training at T > 1, each a run: ``"epochs"``, as many as the others have had in all, and
            ``"time"``, that number over T.
        latencies: true latencies at which answers are read; of direct training up to four times its T.
        seeds: each with its own float network.
        float_epochs: of the float network.
        epochs: of fine-tuning; the float network continues as long.
        rates: learning rates of fine-tuning; of several, validation images choose.
        direct_rates: of direct training, which starts from fresh weights; as many as there are of fine-tuning.
        distillation: weight of the float network as a teacher, for everything that trains.
        averaging: decay of a running average of the weights, for everything that trains; 0 for none.
        activity: weight of the spikes in the loss, for everything that trains as a quantized network.
        rehearsal: the most steps of SRP and COS before those that count; powers of two up to it are tried, and training
            images choose at each latency.
        pooling: of rivals over time.
        frames: sequences of so many noisy frames in place of images; 0 for images.
        limit: the most images of each part, for a rehearsal.

    Raises:
        SpecError: an unknown method, or a value out of range.
    """

    data: str = "fashion-mnist"
    model: str = "resnet9"
    width: int | None = None
    options: Mapping[str, int] = field(default_factory=dict)
    methods: tuple[str, ...] = ("ann", *METHODS)
    levels: tuple[int, ...] = (4,)
    trained_steps: tuple[int, ...] = (1, 2, 4)
    budgets: tuple[str, ...] = BUDGETS
    latencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seeds: tuple[int, ...] = (0,)
    float_epochs: int = 10
    epochs: int = 5
    rates: tuple[float, ...] = (0.05,)
    direct_rates: tuple[float, ...] = (0.2,)
    distillation: float = 0.0
    averaging: float = 0.0
    activity: float = 0.0
    rehearsal: int = 4
    pooling: Pooling = "sums"
    frames: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("options", isinstance(self.options, Mapping), "whole numbers by name")
        object.__setattr__(self, "options", dict(self.options))  # later changes of the caller's are not ours
        self._require("width", self.width is None or is_integer(self.width, 1), "a positive integer or None")
        self._require("options", all(map(is_integer, self.options.values())), "whole numbers by name")
        self._check_lists()
        whole = is_integer(self.epochs, 1) and is_integer(self.float_epochs, 1)
        self._require("epochs", whole, "an integer of at least 1, like float_epochs")
        self._require("distillation", is_within(self.distillation, 0.0, 1.0), "a number in [0, 1]")
        self._require("averaging", is_within(self.averaging, 0.0, 1.0) and self.averaging < 1, "a number in [0, 1)")
        self._require("activity", is_not_negative(self.activity), "a finite number of at least 0")
        self._require("rehearsal", is_integer(self.rehearsal, 1), "an integer of at least 1")
        self._require("frames", is_integer(self.frames, 0), "an integer of at least 0")
        self._require("limit", self.limit is None or is_integer(self.limit, 1), "a positive integer or None")

    def _check_lists(self) -> None:
        for name in (*_CHOOSING, "latencies", "rates", "direct_rates"):
            values = getattr(self, name)
            self._require(name, isinstance(values, tuple | list), "several values, as a tuple")
            object.__setattr__(self, name, tuple(values))
            once = all(values.count(value) == 1 for value in values)
            self._require(name, bool(values) and once, "at least one value, each once")
        for name, known in (("methods", ("ann", *METHODS, *PEERS)), ("budgets", BUDGETS)):
            self._require(name, all(value in known for value in getattr(self, name)), f"some of {', '.join(known)}")
        for name, least in (("levels", 2), ("trained_steps", 1), ("latencies", 1), ("seeds", 0)):
            whole = all(is_integer(value, least) for value in getattr(self, name))
            self._require(name, whole, f"whole numbers of at least {least}")
        self._require("latencies", self.latencies == tuple(sorted(self.latencies)), "increasing numbers")
        for name in ("rates", "direct_rates"):
            self._require(name, all(map(is_positive, getattr(self, name))), "positive, finite rates")
        trials = len(self.rates)
        self._require(
            "direct_rates", len(self.direct_rates) == trials, f"{trials} rates, as many trials as the others have"
        )

    @property
    def network(self) -> str:
        """The network and its input in one word."""
        parts = [self.model, "" if self.width is None else str(self.width)]
        parts += [f"{name}{value}" for name, value in sorted(self.options.items())]
        return "-".join(part for part in (*parts, f"{self.frames}-frames" if self.frames else "") if part)

    @property
    def setup(self) -> str:
        """A digest of what a run depends on beside what names it."""
        return _digest({name: value for name, value in self.to_dict().items() if name not in _CHOOSING})

    def setup_of(self, method: str) -> str:
        """:attr:`setup`, and where settings are searched also these, how they are chosen, and another tool's version."""
        searched = {"setup": self.setup, "as_good": AS_GOOD}
        if method in PEERS:
            return _digest(searched | PEERS[method].asked())
        if method in METHODS and METHODS[method].rehearses:
            return _digest(searched | {"rehearsals": self.rehearsals})
        return self.setup

    @property
    def rehearsals(self) -> list[int]:
        """The lengths that are tried: powers of two up to :attr:`rehearsal`."""
        return [2**power for power in range(self.rehearsal.bit_length())]

    @property
    def training(self) -> str:
        """A digest of what a trained network depends on beside its own name."""
        values = self.to_dict()
        validated = len(self.rates) > 1  # then a part of the training images is kept apart
        kept = {name: values[name] for name in _TRAINING if name != "rates"}
        return _digest({**kept, "validated": validated})

    def runs(self) -> list[dict[str, Any]]:
        """All runs, seed by seed."""
        return [
            dict(zip(ASKED, (self.data, self.network, name, *variant, seed, self.setup_of(name)), strict=True))
            for seed in self.seeds
            for name in self.methods
            for variant in self._variants(name)
        ]

    def _variants(self, name: str) -> Iterator[tuple[int | None, int | None, str]]:
        method = METHODS.get(name)
        levels = self.levels if method is not None and method.has_levels else (None,)
        if method is None or method.family != "direct":
            yield from ((level, None, "epochs") for level in levels)
            return
        for level, steps in itertools.product(levels, self.trained_steps):
            for budget in self.budgets if steps > 1 else ("epochs",):  # at T = 1 both are the same
                yield level, steps, budget


def key_of(run: Mapping[str, Any]) -> tuple[str, ...]:
    """What identifies a run, or a row of one, in the words of the table."""
    return tuple(as_text(run[column]) for column in ASKED)


def described(run: Mapping[str, Any]) -> str:
    """A run as a line."""
    return ", ".join(f"{key} {value}" for key, value in run.items() if value is not None and key != "setup")


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
