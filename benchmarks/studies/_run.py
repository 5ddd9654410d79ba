"""One run of a study: quantize a trained float network, start its steps, fine-tune it, and measure what came of it."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from _setting import RUNS, Setting, fine_tuning
from torch import Tensor, nn

import polarspike as ps
from polarspike.calibration import law_of_batch_norm
from polarspike.common.modules import hooked
from polarspike.errors import CalibrationError
from polarspike.information import entropy
from polarspike.quantizers import PolarityQuantizer
from polarspike.runs import RunDirectory
from polarspike.training_spec import TrainSpec

Module = TypeVar("Module", bound=nn.Module)
CALIBRATION_IMAGES = 2000
#: What :mod:`recipe` found to help, on validation images; the other studies fine-tune with it.
RECIPE: dict[str, Any] = {"step_rate": 0.2, "warmup_epochs": 1.0}
#: The same for a network that is quantized after a few epochs: the rate of a float network.
EARLY_RECIPE: dict[str, Any] = {**RECIPE, "learning_rate": 0.2}
_PROOF_IMAGES = 250


def quantized(parent: nn.Module, where: Setting, spec: ps.QuantSpec, factor: float = 1.0) -> ps.QuantizedNetwork:
    """The calibrated quantized network, with every step multiplied by ``factor``."""
    calibration = where.batches(where.train, CALIBRATION_IMAGES)
    example, _ = next(iter(calibration))
    qann = ps.quantize(parent, spec, example=example[:2])
    ps.calibrate(qann, calibration)
    for site in qann.sites().values():
        site.set_step(site.step.detach() * factor)
    return qann


def tuned(
    model: Module,
    parent: nn.Module,
    network: str,
    where: Setting,
    epochs: int,
    seed: int,
    **options: Any,
) -> Module:
    """The network after ``epochs`` of training, with its float parent as teacher if asked for."""
    return trained(model, fine_tuning(network, epochs, seed, **options), where, parent)


def trained(model: Module, spec: TrainSpec, where: Setting, parent: nn.Module, kept: str | None = None) -> Module:
    """The network after a training, with its float parent as teacher if asked for.

    Under the name ``kept`` its checkpoints are kept in ``runs/studies``, so that a long run goes on where it stopped.
    """
    teacher = copy.deepcopy(parent) if spec.distillation else None
    run = None if kept is None else RunDirectory(RUNS / kept, resume=(RUNS / kept).exists())
    ps.fit(model, where.training(), spec, teacher=teacher, run=run, resume=run is not None, progress=False)
    return model


def accuracies(network: nn.Module, where: Setting) -> dict[str, float]:
    """Percentages of right answers on validation (where there is one) and test images."""
    found = (
        {} if where.validation is None else {"validation": 100 * _accuracy(network, where.batches(where.validation))}
    )
    return found | {"test": 100 * _accuracy(network, where.batches(where.test))}


def _accuracy(network: nn.Module, batches: Any) -> float:
    return ps.evaluate(network, batches).accuracy[1]


@torch.no_grad()
def firing(qann: ps.QuantizedNetwork, batches: Iterable[Any]) -> dict[str, Any]:
    """Events, spikes and negative spikes per neuron and image, in all and (events) at each site, at T = 1; and neurons."""
    counts: dict[str, Tensor] = {}
    neurons: dict[str, int] = {}

    def look(name: str, site: PolarityQuantizer, x: Tensor) -> None:
        codes = site.encode(x)
        found = torch.stack([codes.count_nonzero(), codes.abs().sum(), -codes.clamp(max=0).sum()]).double()
        counts[name] = counts.get(name, 0) + found
        neurons[name] = neurons.get(name, 0) + codes.numel()

    handles = [
        site.register_forward_pre_hook(lambda site, inputs, name=name: look(name, site, inputs[0]))
        for name, site in qann.sites().items()
    ]
    images = 0
    with hooked(handles):
        for inputs, _ in batches:
            images += len(inputs)
            qann(inputs)
    events, spikes, negative = (torch.stack(list(counts.values())).sum(0) / sum(neurons.values())).tolist()
    density = " ".join(f"{name}:{float(count[0]) / neurons[name]:.3f}" for name, count in counts.items())
    return {
        "events": events,
        "spikes": spikes,
        "negative": negative,
        "density": density,
        "neurons": sum(neurons.values()) // images,
    }


def differing_codes(qann: ps.QuantizedNetwork, where: Setting) -> int:
    """Codes in which the spiking network differs at T = 1 on a few hundred test images."""
    return ps.verify(qann, ps.convert(qann), where.batches(where.test, _PROOF_IMAGES)).different


@torch.no_grad()
def site_statistics(qann: ps.QuantizedNetwork, where: Setting, promised: bool = False) -> dict[str, Any]:
    """What the codes of the sites are like on 1,000 training images: means over sites, and each site's figures.

    ``bits``: entropy of the codes; ``used``: share of the levels that hold at least one code in a thousand; ``error``:
    square error over the power of the rectified input; ``kurtosis``: excess kurtosis of the input, 0 for a normal law;
    ``bits_law`` (if ``promised``): the entropy that the batch norm's own normal laws promise at the same step, where one
    feeds the site.
    """
    rows: dict[str, dict[str, float]] = {}
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        site.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0]))
        for name, site in qann.sites().items()
    ]
    with hooked(handles):
        for images, _ in where.batches(where.train, 1000):
            qann(images)
    for name, site in qann.sites().items():
        x = torch.cat(inputs[name])
        codes = site.encode(x).long().flatten() + site.levels[0]
        share = torch.bincount(codes, minlength=sum(site.levels) + 1).double() / codes.numel()
        target = site.reference(x)
        centred = (x - x.mean()).double()
        rows[name] = {
            "bits": float(-torch.special.xlogy(share, share).sum() / math.log(2.0)),
            "used": float((share > 1e-3).double().mean()),
            "error": float((site(x) - target).double().square().sum() / target.double().square().sum()),
            "kurtosis": float(centred.pow(4).mean() / centred.square().mean().square() - 3.0),
        }
        if promised:
            with contextlib.suppress(CalibrationError):  # residual sums have no such law
                law = law_of_batch_norm(qann, name)
                rows[name]["bits_law"] = float(entropy(site.levels, site.step.detach().double().view(1), law))
    mean = {
        key: sum(row[key] for row in rows.values() if key in row) / max(1, sum(key in row for row in rows.values()))
        for key in ("bits", "used", "error", "kurtosis", "bits_law")
    }
    listed = " ".join(
        f"{name}:{row['bits']:.3f}/{row.get('bits_law', float('nan')):.3f}/{row['kurtosis']:.2f}"
        for name, row in rows.items()
    )
    return {**mean, "sites": listed}


def outcome(qann: ps.QuantizedNetwork, where: Setting, before: dict[str, Any]) -> dict[str, Any]:
    """What every study of starts and levels reports: accuracy, firing, entropy and error ``before`` training and now."""
    after = site_statistics(qann, where)
    fired = firing(qann, where.batches(where.test))
    return {
        **accuracies(qann, where),
        "events": fired["events"],
        "spikes": fired["spikes"],
        **{f"{key}_start": before[key] for key in ("bits", "error")},
        **{f"{key}_end": after[key] for key in ("bits", "error")},
        "used_end": after["used"],
        "negative_spikes": fired["negative"],
    }
