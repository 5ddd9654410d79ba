"""What a loader draws from is found once, wherever it is held."""

from __future__ import annotations

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from polarspike.common.samplers import generators_of, sources_of


def test_generators_of_a_loader_and_its_samplers_are_found_once() -> None:
    one, other = torch.Generator(), torch.Generator()
    samples = list(range(8))
    inner = RandomSampler(samples, generator=other)
    by_batch = DataLoader(samples, batch_sampler=BatchSampler(inner, 2, drop_last=False), generator=one)
    assert generators_of(by_batch) == [one, other] and inner in sources_of(by_batch)
    assert generators_of(DataLoader(samples, 2, shuffle=True, generator=one)) == [one]  # the sampler has it, too
    assert generators_of([samples]) == []
