"""What is measured multiplies float32 as such, whatever torch may round; what is trained follows torch's own settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike.common.precision import float32_products
from polarspike.training_spec import TrainSpec

BACKENDS: Any = torch.backends


def readable(read: Callable[[], object]) -> object:
    try:
        return read()
    except RuntimeError:
        return "torch refuses"


def state() -> tuple[object, ...]:
    return (
        readable(lambda: BACKENDS.cudnn.allow_tf32),
        readable(lambda: BACKENDS.cuda.matmul.allow_tf32),
        readable(torch.get_float32_matmul_precision),
        *(place.fp32_precision for place in (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.cuda.matmul)),
        *(place.fp32_precision for place in (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul)),
    )


def rounds() -> bool:
    """Whether torch may round factors of convolutions or matrix products, on any device."""
    kinds = (BACKENDS.cudnn.conv, BACKENDS.cuda.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul)
    return any(place.fp32_precision not in ("ieee", "none") for place in kinds)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    BACKENDS.fp32_precision = "none"
    BACKENDS.mkldnn.fp32_precision = "none"
    for place in (BACKENDS.mkldnn.conv, BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul):
        place.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True  # as torch begins


SETTINGS: dict[str, Callable[[], None]] = {
    "as torch begins": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "one convolution": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "newer switch": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "everything": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "bfloat16 of the CPU": lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
}


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS)
def test_nothing_rounds_within_and_all_settings_come_back(chosen: Callable[[], None]) -> None:
    chosen()
    before = state()
    with pytest.raises(ZeroDivisionError), float32_products():
        inside = state()
        assert not rounds() and "torch refuses" not in inside
        with float32_products():
            assert state() == inside
        assert state() == inside
        raise ZeroDivisionError
    assert state() == before


def test_what_measures_does_not_round_and_training_does_as_torch_is_set() -> None:
    found: dict[str, set[bool]] = {}
    verb = ""

    def listened(network: nn.Module) -> Any:
        for part in network.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_pre_hook(lambda *_: found.setdefault(verb, set()).add(rounds()))
        return network

    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    qann = ps.quantize(model, ps.QuantSpec(0, 3), example=batches[0][0])
    with_hooks = listened(copy.deepcopy(qann))
    verb = "calibrate"
    ps.calibrate(with_hooks, batches)
    verb = "fit"
    ps.fit(with_hooks, batches, TrainSpec(epochs=1, warmup_epochs=0.5), teacher=listened(model), progress=False)
    ps.calibrate(qann, batches)
    snn = listened(ps.convert(qann))
    verb = "verify"
    ps.verify(qann, snn, batches, timesteps=2)
    verb = "evaluate"
    ps.evaluate(snn, batches, (1, 2))
    assert found == {"calibrate": {False}, "fit": {True}, "verify": {False}, "evaluate": {False}}
