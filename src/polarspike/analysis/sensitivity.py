"""How much an error at a site changes what the network answers: one backward pass of the float network per batch.

For small errors e of the outputs of sites, elements and sites taken as independent, the loss of an answer grows by

    classes   KL(softmax(z) || softmax(z + dz))  =  1/2 sum_j F_j e_j^2,     F_j = E_(y ~ softmax(z)) (d log p_y / dx_j)^2
    values    |dz|^2 / P                          =  sum_j G_j e_j^2,        G_j = E_r (d (r . z) / dx_j)^2 / P

with the Fisher information F, estimated from one drawn class per image, or the squared Jacobian G, from random signs r;
P is the mean of |z|^2 over the images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from polarspike.analysis.answers import Answers, require_scores
from polarspike.analysis.observation import channel_dim
from polarspike.common.inputs import Inputs, float_leaves, to_device
from polarspike.common.modules import apply, device_of, evaluating, hooked
from polarspike.errors import SpecError
from polarspike.quantized import QuantizedNetwork


def sensitivities(
    qann: QuantizedNetwork, batches: Iterable[Inputs], answers: Answers = "values", seed: int = 0
) -> dict[str, Tensor]:
    """Loss per unit of mean square error at every site, averaged over images.

    Args:
        qann: run as the float network; unchanged, and no gradient is left behind.
        batches: inputs.
        answers: which of the two losses above.
        seed: of the drawn classes or signs.

    Returns:
        By site, (1,) or (C,) with one step per channel, float64 on the CPU: ``numel mean(F) / 2`` (or ``numel mean(G)``)
        of the elements that share a step, so that times their mean square error it is a loss per image.

    Raises:
        SpecError: classes are asked for and an output has none.
    """
    sites = qann.sites()
    dims = {name: channel_dim(qann, name) if site.spec.channels else None for name, site in sites.items()}
    sums = {name: torch.zeros(max(1, site.spec.channels), dtype=torch.float64) for name, site in sites.items()}
    device, images = device_of(qann), 0
    generator = torch.Generator().manual_seed(seed)

    def watch(name: str, y: Tensor) -> Tensor:
        # Where nothing before a site asks for a gradient, its output starts the graph.
        watched = y if y.requires_grad else y.detach().requires_grad_()
        watched.register_hook(lambda gradient: add(name, gradient))
        return watched

    def add(name: str, gradient: Tensor) -> None:
        square, dim = gradient.detach().double().square(), dims[name]
        if dim is not None:
            square = square.movedim(dim, 0).flatten(1).sum(1)
        sums[name] += square.sum().view(1).cpu() if dim is None else square.cpu()

    handles = [
        site.register_forward_hook(lambda module, inputs, y, name=name: watch(name, y)) for name, site in sites.items()
    ]
    frozen = [parameter for parameter in qann.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with hooked(handles), evaluating(qann), qann.float_activations(), torch.enable_grad():
            for inputs in batches:
                leaves = float_leaves(apply(qann, to_device(inputs, device)))
                if not leaves or any(leaf.dim() == 0 for leaf in leaves):
                    raise SpecError("expected outputs of float numbers with the images in dimension 0, got none")
                images += leaves[0].shape[0]
                _score(leaves, answers, generator).backward()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {name: total / max(1, images) for name, total in sums.items()}


def _score(leaves: list[Tensor], answers: Answers, generator: torch.Generator) -> Tensor:
    """A number whose squared gradient is the sensitivity."""
    if answers == "values":
        parts = []
        for leaf in leaves:
            signs = torch.randint(0, 2, leaf.shape, generator=generator).to(leaf).mul_(2.0).sub_(1.0)
            power = float(leaf.detach().double().square().sum()) / max(1, len(leaf))
            parts.append((leaf * signs).sum() * (power**-0.5 if power > 0.0 else 0.0))
        return torch.stack(parts).sum()
    require_scores("sensitivities", leaves)
    parts = []
    for leaf in leaves:
        scores = leaf.movedim(1, -1).flatten(0, -2).float()
        drawn = torch.multinomial(scores.detach().softmax(1).cpu(), 1, generator=generator).squeeze(1)
        parts.append(functional.cross_entropy(scores, drawn.to(scores.device), reduction="sum") * 0.5**0.5)
    return torch.stack(parts).sum()
