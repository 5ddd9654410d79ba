"""Where do negative levels pay? N in {0, 1, 2, P} at fixed P and at a fixed number of levels, on three kinds of network.

    python benchmarks/studies/polarity.py [--list] [--part 0 --parts 2]

14x14 images, 4 epochs of fine-tuning from a float network of 8. All sites of the two CNNs are rectified (ReLU); those of the
ViT are signed by nature (behind layer norm and GELU, q, k, v), where N = 0 is refused, but for the attention probabilities,
which are (0, P) in every row. Gains: ``symmetric`` (1), ``learned`` (from .25 at a ReLU), ``pruned`` (learned for half of
the epochs, then negative levels with a gain below .2 are taken away, and training goes on). ``offset`` is the rival without
negative codes: levels (0, N + P) from a learned offset b, q = s k + b, as in LSQ+ (Bhalgat et al. 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from _run import RECIPE, outcome, quantized, site_statistics, tuned
from _setting import parent, setting
from _table import Row, carry_out, options

import polarspike as ps
from polarspike.baselines.quantizers import with_offsets

PARENT_EPOCHS, EPOCHS, PRUNED_BELOW = 8, 4, 0.2
ASKED = ("network", "negative", "positive", "gain", "seed")
FOUND = (
    "validation", "test", "events", "spikes", "negative_spikes", "gains", "pruned", "bits_start", "bits_end", "error_start",
    "error_end",
)  # fmt: skip

#: (N, P, gain): fixed P = 3, then 4 levels, then 3 levels, each with the rival that learns an offset.
ROWS = (
    (0, 3, "none"),
    (1, 3, "symmetric"), (1, 3, "learned"), (1, 3, "pruned"),
    (2, 3, "symmetric"), (2, 3, "learned"),
    (3, 3, "symmetric"), (3, 3, "learned"), (3, 3, "pruned"),
    (1, 2, "symmetric"), (1, 2, "learned"), (1, 2, "offset"),
    (0, 2, "none"), (1, 1, "symmetric"), (1, 1, "learned"), (1, 1, "pruned"), (1, 1, "offset"),
    (0, 4, "none"),
)  # fmt: skip
NETWORKS = ("resnet", "plain", "vit")


def runs() -> list[Row]:
    """One seed for the screen, then two more."""
    return [
        {"network": network, "negative": negative, "positive": positive, "gain": gain, "seed": seed}
        for seed in (0, 1, 2)
        for network in NETWORKS
        for negative, positive, gain in ROWS
        if network != "vit" or (negative > 0 and gain in ("symmetric", "offset"))
    ]


def run(asked: Row) -> Row:
    """Train and measure one row."""
    network, negative, positive, gain = (asked[key] for key in ("network", "negative", "positive", "gain"))
    where, seed = setting("small"), asked["seed"]
    start = parent(network, seed, where, PARENT_EPOCHS)
    chosen: Any = "learned" if gain in ("learned", "pruned") else 1.0
    signed: Any = "all" if negative else "by-nature"
    qann = quantized(start, where, ps.QuantSpec(negative, positive, chosen, signed, init="mse"))
    if gain == "offset":
        with_offsets(qann)
    before = site_statistics(qann, where, promised=True)
    pruned: tuple[str, ...] = ()
    if gain == "pruned":
        tuned(qann, start, network, where, EPOCHS // 2, seed, **RECIPE)
        pruned = ps.prune(qann, PRUNED_BELOW)
        tuned(qann, start, network, where, EPOCHS - EPOCHS // 2, seed, **RECIPE)
    else:
        tuned(qann, start, network, where, EPOCHS, seed, **RECIPE)
    gains = " ".join(
        f"{float(torch.as_tensor(site.gain).detach()):.2f}" for site in qann.sites().values() if site.spec.negative
    )
    found = outcome(qann, where, before) | {"gains": gains, "pruned": len(pruned)}
    return {key: found[key] for key in FOUND}


def main() -> None:
    torch.set_num_threads(1)
    carry_out("polarity", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
