"""Inputs over several timesteps."""

from __future__ import annotations

import pytest
import torch

from polarspike.common.frames import channels_of, frames_of, running_means
from polarspike.errors import InputError, SpecError

X = torch.arange(12.0).view(4, 3)


def test_frames_of_a_sequence_and_of_one_image() -> None:
    assert frames_of(X, 3, None) == [X, X, X]
    frames = frames_of({"x": X, "flag": True}, None, 1)
    assert [frame["x"].tolist() for frame in frames] == X.t().tolist()  # type: ignore[call-overload]
    with pytest.raises(InputError, match="has no such dimension"):
        frames_of(X, None, 2)
    with pytest.raises(InputError, match="one common length"):
        frames_of((X, X[:, :2]), None, 1)
    with pytest.raises(SpecError, match="contradicts a sequence of 3 frames"):
        frames_of(X, 2, 1)
    for wrong in (0, True, 1.5):
        with pytest.raises(SpecError, match="expected a positive integer"):
            frames_of(X, wrong, None)  # type: ignore[arg-type]


def test_frames_side_by_side_are_channels() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # (batch, T, C, L)
    assert torch.equal(channels_of(x, 1), x.reshape(2, 12, 5))
    assert torch.equal(channels_of(x.movedim(1, -1), -1), x.reshape(2, 12, 5))
    assert channels_of({"x": x, "flag": True}, 1)["flag"] is True  # type: ignore[call-overload]
    for time_dim in (0, 4, -4):
        with pytest.raises(InputError, match="expected a sequence"):
            channels_of(x, time_dim)


def test_the_mean_of_one_repeated_object_is_that_object() -> None:
    assert all(mean is X for mean in running_means([X, X, X]))


def test_running_means_are_those_of_the_frames_so_far() -> None:
    frames = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    for t, mean in enumerate(running_means(frames), start=1):
        torch.testing.assert_close(mean, torch.stack(frames[:t]).mean(0))
    with pytest.raises(InputError, match="input '0': integers that vary over time"):
        list(running_means([torch.tensor([1]), torch.tensor([2])]))
