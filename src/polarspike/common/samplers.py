"""What a loader draws from: the loader itself, its samplers and theirs, and the generators that any of them holds."""

from __future__ import annotations

import torch


def sources_of(loader: object) -> list[object]:
    """The loader, its samplers and theirs: where generators, ``set_epoch`` and shares of processes are found."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    return [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]


def generators_of(loader: object) -> list[torch.Generator]:
    """The generators of a loader and its samplers, each once."""
    found = (getattr(source, "generator", None) for source in sources_of(loader))
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())
