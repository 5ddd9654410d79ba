"""The lists of runs that make the tables of docs/rivals.md, written down before the first of them.

    small   Fashion-MNIST at 14x14 pixels on a residual network, a plain one, a Transformer and sequences of noisy frames:
            every method once on the residual network, most of them on the others (two and a half hours of one slow
            core), then other tools, and the rows that matter with two more seeds
    full    Fashion-MNIST at 28x28 pixels on a VGG and a residual network: the rows that matter, then whatever needs no
            further training, for a longer stay

Parts of one network share their settings, so that they share what is trained. Everybody has one learning rate: fine-tuning
the one that the studies chose, direct training of ``small`` the float network's. Four trials for each method, on the plain
network, stand in ``benchmarks/rates.py``: validation images chose twice that rate for direct training, which ``full``
therefore has. Distillation and averaging are off, because neither helped in the studies.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from polarspike.baselines.comparison import Comparison
from polarspike.baselines.methods import METHODS
from polarspike.baselines.peers import PEERS
from polarspike.errors import SpecError, closest


@dataclass(frozen=True)
class Part:
    """One comparison of a list, with its title."""

    title: str
    comparison: Comparison


_EVERY = ("ann", *METHODS)
_FEWER = tuple(name for name in _EVERY if name not in ("plif", "ternary"))
_NOT_DIRECT = tuple(name for name in _EVERY if name == "ann" or METHODS[name].family != "direct")
#: The best of each family, and our closest relatives.
_NAMED = (
    "ann", "polarspike", "polarspike+t", "scale-and-fire", "scale-and-fire+t", "st-bif", "qcfs", "lsq", "lsq+", "lif",
    "integer-lif",
)  # fmt: skip

#: What is asked again at more levels: ours, the closest binary rival, and a quantized network.
_LEVELED = ("polarspike", "polarspike+t", "qcfs", "lsq")
_UNTRAINED = ("polarspike-free", "scale-and-fire-free")
_DIRECT = ("lif", "integer-lif")
#: What needs no training beside that of the float network and of QCFS.
_FURTHER = ("rate-max", "rate-percentile", "balanced", "snm", "srp", "cos", "group", *_UNTRAINED)
#: And at so many that no binary rival keeps up: against other tools' neurons, whose spikes in a step nothing bounds.
_CLOSEST = ("polarspike", *_UNTRAINED, "lsq")

_SMALL = Comparison(
    data="fashion-mnist-14", methods=_EVERY, trained_steps=(1, 4), budgets=("time",), float_epochs=5, epochs=3
)
_RESNET = dataclasses.replace(_SMALL, model="resnet20", width=16, options={"blocks": 1})
_PLAIN = dataclasses.replace(_SMALL, model="cnn", width=16)
_VIT = dataclasses.replace(
    _SMALL, model="vit", width=48, options={"patch": 2}, float_epochs=6, epochs=3, trained_steps=(1,)
)
_FRAMES = dataclasses.replace(_PLAIN, frames=8, latencies=(1, 2, 4, 8))

_FULL = Comparison(
    methods=tuple(name for name in _NAMED if name not in _DIRECT), trained_steps=(1, 4), budgets=("time",)
)
_FULL_RESNET = dataclasses.replace(_FULL, model="resnet9", width=16)
_FULL_VGG = dataclasses.replace(_FULL, model="vgg16", width=8)
#: As far as single spikes are judged; every step of the residual network at full size costs minutes.
_JUDGED = (1, 2, 4, 8)
_FURTHER_OF_RESNET = ("rate-max", "srp", "polarspike-free")

PRESETS: dict[str, tuple[Part, ...]] = {
    "small": (
        Part("residual network, every method", _RESNET),
        Part("plain network, all but two variants of LIF", dataclasses.replace(_PLAIN, methods=_FEWER)),
        Part(
            "Transformer, every conversion and quantization that takes it, and integer-LIF",
            dataclasses.replace(_VIT, methods=(*_NOT_DIRECT, "integer-lif")),
        ),
        Part("eight noisy frames, all but two variants of LIF", dataclasses.replace(_FRAMES, methods=_FEWER)),
        Part("residual network, other tools", dataclasses.replace(_RESNET, methods=tuple(PEERS))),
        Part("plain network, other tools", dataclasses.replace(_PLAIN, methods=tuple(PEERS))),
        Part(
            "residual network, direct training at T = 2",
            dataclasses.replace(_RESNET, methods=_DIRECT, trained_steps=(2,)),
        ),
        Part("residual network, two more seeds", dataclasses.replace(_RESNET, methods=_NAMED, seeds=(1, 2))),
        Part("plain network, two more seeds", dataclasses.replace(_PLAIN, methods=_NAMED, seeds=(1, 2))),
        Part(
            "Transformer, two more seeds",
            dataclasses.replace(
                _VIT, methods=("ann", "polarspike", "polarspike+t", "st-bif", "lsq", "lsq+"), seeds=(1, 2)
            ),
        ),
        Part("residual network, 8 levels", dataclasses.replace(_RESNET, methods=_LEVELED, levels=(8,))),
        Part("plain network, 8 levels", dataclasses.replace(_PLAIN, methods=_LEVELED, levels=(8,))),
        Part(
            "plain network, direct training at T = 4 with as many epochs, which is four times as long",
            dataclasses.replace(_PLAIN, methods=_DIRECT, trained_steps=(4,), budgets=("epochs",)),
        ),
        Part(
            "residual network, direct training at T = 2 and 4 with as many epochs",
            dataclasses.replace(_RESNET, methods=_DIRECT, trained_steps=(2, 4), budgets=("epochs",)),
        ),
        Part(
            "plain network, direct training at T = 2",
            dataclasses.replace(_PLAIN, methods=_DIRECT, trained_steps=(2,), budgets=("time", "epochs")),
        ),
        Part("residual network, 16 and 32 levels", dataclasses.replace(_RESNET, methods=_CLOSEST, levels=(16, 32))),
        Part("plain network, 16 and 32 levels", dataclasses.replace(_PLAIN, methods=_CLOSEST, levels=(16, 32))),
        Part(
            "Transformer, 16 and 32 levels without training",
            dataclasses.replace(_VIT, methods=("polarspike-free",), levels=(16, 32)),
        ),
        Part(
            "residual network, 64 levels without training",
            dataclasses.replace(_RESNET, methods=_UNTRAINED, levels=(64,)),
        ),
        Part(
            "plain network, 64 levels without training",
            dataclasses.replace(_PLAIN, methods=_UNTRAINED, levels=(64,)),
        ),
        Part("Transformer, other tools", dataclasses.replace(_VIT, methods=tuple(PEERS))),
        Part("eight noisy frames, other tools", dataclasses.replace(_FRAMES, methods=tuple(PEERS))),
        Part(
            "Transformer, direct training of ternary and of binary spikes",
            dataclasses.replace(_VIT, methods=("ternary", "lif")),
        ),
        Part(
            "plain network, direct training of ternary spikes at T = 1",
            dataclasses.replace(_PLAIN, methods=("ternary",), trained_steps=(1,)),
        ),
        *(
            Part(
                f"{title}, direct training of several spikes at 8, 16 and 32 levels and T = 1",
                dataclasses.replace(network, methods=("integer-lif",), levels=(8, 16, 32), trained_steps=(1,)),
            )
            for title, network in (("residual network", _RESNET), ("plain network", _PLAIN))
        ),
        Part(
            "eight noisy frames, direct training at T = 2 and 4 with as many epochs",
            dataclasses.replace(_FRAMES, methods=_DIRECT, trained_steps=(2, 4), budgets=("epochs",)),
        ),
        *(
            Part(
                f"{title}, direct training of ternary spikes at T = {steps}",
                dataclasses.replace(network, methods=("ternary",), trained_steps=(steps,), budgets=budgets),
            )
            for title, network, steps, budgets in (
                ("plain network", _PLAIN, 2, ("time", "epochs")),
                ("plain network", _PLAIN, 4, ("time", "epochs")),
                ("residual network", _RESNET, 2, ("time", "epochs")),
                ("residual network", _RESNET, 4, ("epochs",)),
                ("eight noisy frames", _FRAMES, 1, ("epochs",)),
                ("eight noisy frames", _FRAMES, 2, ("time", "epochs")),
                ("eight noisy frames", _FRAMES, 4, ("time", "epochs")),
            )
        ),
        Part(
            "eight noisy frames, direct training at T = 2 in the same time",
            dataclasses.replace(_FRAMES, methods=_DIRECT, trained_steps=(2,), budgets=("time",)),
        ),
    ),
    "full": (
        *(
            Part(f"{title}{what}", dataclasses.replace(network, **asked))
            for title, network, further in (
                ("VGG", _FULL_VGG, _FURTHER),
                ("residual network", _FULL_RESNET, _FURTHER_OF_RESNET),
            )
            for what, asked in (
                ("", {}),
                (", what needs no further training", {"methods": further}),
                (", other tools up to T = 8", {"methods": tuple(PEERS), "latencies": _JUDGED}),
                (", direct training", {"methods": _DIRECT, "direct_rates": (0.4,)}),
                (", two more seeds", {"seeds": (1, 2)}),
            )
        ),
        Part(
            "residual network, whatever else needs no further training, up to T = 8",
            dataclasses.replace(
                _FULL_RESNET,
                methods=tuple(name for name in _FURTHER if name not in _FURTHER_OF_RESNET),
                latencies=_JUDGED,
            ),
        ),
        *(
            Part(
                f"{title}, 16 and 32 levels without training, up to T = 8",
                dataclasses.replace(network, methods=("polarspike-free",), levels=(16, 32), latencies=_JUDGED),
            )
            for title, network in (("VGG", _FULL_VGG), ("residual network", _FULL_RESNET))
        ),
    ),
}


def preset(name: str) -> tuple[Part, ...]:
    """The list of this name.

    Raises:
        SpecError: there is none; the message lists them.
    """
    if name not in PRESETS:
        raise SpecError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}{closest(name, PRESETS)}")
    return PRESETS[name]
