"""Every network of the registry, narrow, on real digits: the spiking network is its quantized network, code for code."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike import data, models

# Few levels and large steps: finer ones leave more than 95 % of the codes non-zero, and such a comparison is void.
SPEC = {"negative": 1, "positive": 3, "signed": "all", "gain": "learned", "init": "mse"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:channels that never carry a signal")]


def sharpened(model: torch.nn.Module) -> torch.nn.Module:
    """Attention of random weights is uniform and fires one code everywhere; made as uneven as a trained one's."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.MultiheadAttention):
                queries_and_keys = part.in_proj_weight[: 2 * part.embed_dim]
                queries_and_keys.mul_(1.5 / (float(queries_and_keys.std()) * part.embed_dim**0.5))
    return model


def quantized(name: str, granularity: str) -> tuple[ps.QuantizedNetwork, Tensor, object]:
    """A calibrated network with batch statistics of real images, images to compare on, and training batches."""
    digits = data.load("digits")
    size = {"image_size": digits.image_size} if models.describe(name).needs_image_size else {}
    torch.manual_seed(0)
    model = sharpened(models.create(name, num_classes=10, in_channels=1, width=8, **size).train())
    loader = data.batches(digits.train, 32, normalization=digits.normalization, shuffle=True, drop_last=True)
    batches = list(itertools.islice(loader, 8))
    for norm in (part for part in model.modules() if hasattr(part, "running_mean")):
        norm.momentum = None  # the plain mean over these batches
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    spec = ps.QuantSpec(**SPEC, granularity=granularity)  # type: ignore[arg-type]
    qann = ps.quantize(model.eval(), spec, example=images[:2])
    ps.calibrate(qann, batches)
    images, _ = next(iter(data.batches(digits.test, 32, normalization=digits.normalization)))
    return qann, images, loader


def check(qann: ps.QuantizedNetwork, images: Tensor, timesteps: tuple[int, ...]) -> None:
    snn = ps.convert(qann)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            proof = ps.verify(qann, snn, [images], scope=False)
        assert proof.exact and proof.conclusive, str(proof)
    one, other = copy.deepcopy(qann).double(), snn.double()
    varying = images[:8].unsqueeze(1) + 0.3 * torch.randn(8, max(timesteps), *images.shape[1:])
    for t in timesteps:
        proofs = (
            ps.verify(one, other, [images[:8].double()], timesteps=t),
            ps.verify(one, other, [varying[:, :t].double()], time_dim=1),
        )
        assert all(proof.exact and proof.conclusive for proof in proofs), "\n".join(map(str, proofs))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", models.names())
def test_every_model_converts_exactly(name: str, granularity: str) -> None:
    qann, images, _ = quantized(name, granularity)
    check(qann, images, (2, 4))


# Either granularity trains half of the models: both are compared above, and training is what costs.
@pytest.mark.parametrize(
    ("name", "granularity"), list(zip(models.names(), itertools.cycle(["tensor", "channel"]), strict=False))
)
def test_every_model_converts_exactly_after_training(name: str, granularity: str) -> None:
    qann, images, loader = quantized(name, granularity)
    optimizer = torch.optim.AdamW(qann.parameters(), lr=2e-3, weight_decay=0.0)
    qann.train()
    for x, y in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), 20):  # type: ignore[call-overload]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(qann(x), y).backward()
        optimizer.step()
    qann.eval()
    for site_name, site in qann.sites().items():
        assert bool((site.offset != 0).all()), f"a step of {site_name} has not left its start"
        if site.spec.negative:  # all but probabilities
            assert site.raw_gain is not None
            gain = float(site.raw_gain.detach())
            assert gain != site.spec.gain or gain == 1.0, (
                f"the gain of {site_name} has not left its start"
            )  # 1 is a bound
    check(qann, images, (4,))
