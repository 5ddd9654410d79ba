"""One run of a study: quantize a trained float network, start its steps, fine-tune it, and measure what came of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from _setting import RUNS, Setting, fine_tuning
from torch import Tensor, nn

import polarspike as ps
from polarspike.information import NormalMixture, entropy
from polarspike.quantizers import PolarityQuantizer
from polarspike.runs import RunDirectory

Module = TypeVar("Module", bound=nn.Module)
CALIBRATION_IMAGES = 2000
#: What :mod:`recipe` found to help, on validation images; the other studies fine-tune with it.
RECIPE: dict[str, Any] = {"step_rate": 0.2, "warmup_epochs": 1.0}
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
    *,
    kept: str | None = None,
    **options: Any,
) -> Module:
    """The network after ``epochs`` of training, with its float parent as teacher if asked for.

    Under the name ``kept`` its checkpoints are kept in ``runs/studies``, so that a long run goes on where it stopped.
    """
    spec = fine_tuning(network, epochs, seed, **options)
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
    """Events, spikes and negative spikes per neuron and image, in all and (events) at each site, at T = 1."""
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
    try:
        for images, _ in batches:
            qann(images)
    finally:
        for handle in handles:
            handle.remove()
    events, spikes, negative = (torch.stack(list(counts.values())).sum(0) / sum(neurons.values())).tolist()
    density = " ".join(f"{name}:{float(count[0]) / neurons[name]:.3f}" for name, count in counts.items())
    return {"events": events, "spikes": spikes, "negative": negative, "density": density}


def differing_codes(qann: ps.QuantizedNetwork, where: Setting) -> int:
    """Codes in which the spiking network differs at T = 1 on a few hundred test images; -1 if the proof is void."""
    proof = ps.verify(qann, ps.convert(qann), where.batches(where.test, _PROOF_IMAGES))
    return proof.different


@torch.no_grad()
def site_statistics(qann: ps.QuantizedNetwork, where: Setting, law: nn.Module | None) -> dict[str, Any]:
    """What the codes of the sites are like on 1,000 training images: means over sites, and each site's figures.

    ``bits``: entropy of the codes; ``used``: share of the levels that hold at least one code in a thousand; ``error``:
    square error over the power of the rectified input; ``kurtosis``: excess kurtosis of the input, 0 for a normal law;
    ``bits_law``: the entropy that the batch norm's own normal laws promise at the same step, where one feeds the site.
    """
    rows: dict[str, dict[str, float]] = {}
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        site.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0]))
        for name, site in qann.sites().items()
    ]
    try:
        for images, _ in where.batches(where.train, 1000):
            qann(images)
    finally:
        for handle in handles:
            handle.remove()
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
        if law is not None and (promised := _law(qann, name)) is not None:
            step = site.step.detach().double()
            rows[name]["bits_law"] = float(entropy(site.levels, step.view(1), promised))
    mean = {
        key: sum(row[key] for row in rows.values() if key in row) / max(1, sum(key in row for row in rows.values()))
        for key in ("bits", "used", "error", "kurtosis", "bits_law")
    }
    listed = " ".join(
        f"{name}:{row['bits']:.3f}/{row.get('bits_law', float('nan')):.3f}/{row['kurtosis']:.2f}"
        for name, row in rows.items()
    )
    return {**mean, "sites": listed}


def _law(qann: ps.QuantizedNetwork, name: str) -> NormalMixture | None:
    """The normal laws that a batch norm in front of a site promises, as one mixture; None where there is none."""
    node = next(node for node in qann.network.graph.nodes if node.op == "call_module" and node.target == name)
    source = node.args[0]
    norm = qann.network.get_submodule(str(source.target)) if source.op == "call_module" else None
    if not isinstance(norm, nn.BatchNorm2d):
        return None
    return NormalMixture(norm.bias.double().view(1, -1), norm.weight.double().abs().view(1, -1))
