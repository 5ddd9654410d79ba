"""Does the entropy of the codes predict the accuracy that training reaches, and better than the square error does?

    python benchmarks/studies/entropy.py [--list] [--part 0 --parts 2]     the control's runs
    python benchmarks/studies/entropy.py --analyse                          correlations over all studies, no training

The control quantizes with equally probable codes (entropy log2 L at the start): ResNet with 7 sites, 14x14 images, 4 levels.
The analysis takes every run of :mod:`sensitivity` and :mod:`polarity` (without the offset and the pruned ones, whose
codes change their meaning, and without those that diverged) and groups them by network, number of levels, how steps are
trained, and seed, at least three runs each. Within each group the final test accuracy is ranked against a predictor; the
mean of the groups' rank correlations (Spearman), weighted by their degrees of freedom, stands with a 95 % interval from
2,000 bootstrap samples: of float networks with all of their groups, study by study, and of the runs within groups that
have eight or more (a sample of three has hardly a rank). Study (a) has three float networks, for which that is hardly an
interval. Negative for an error that predicts well.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from typing import Any

import torch
from _equal import with_equal_probabilities
from _run import RECIPE, outcome, quantized, site_statistics, tuned
from _setting import parent, setting
from _table import RESULTS, Row, carry_out, options
from torch import Tensor

import polarspike as ps

NETWORK, PARENT_EPOCHS, EPOCHS = "resnet", 8, 4
ASKED = ("strategy", "seed")
FOUND = ("validation", "test", "events", "spikes", "bits_start", "bits_end", "error_start", "error_end", "used_end")
PREDICTORS = ("bits_start", "bits_end", "error_start", "error_end")
_SAMPLES, _LEAST, _ENOUGH = 2000, 3, 8


def runs() -> list[Row]:
    """The control with three seeds."""
    return [{"strategy": "equal probability", "seed": seed} for seed in (0, 1, 2)]


def run(asked: Row) -> Row:
    """Train and measure one row."""
    where, seed = setting("small"), asked["seed"]
    start = parent(NETWORK, seed, where, PARENT_EPOCHS)
    qann = quantized(start, where, ps.QuantSpec(negative=0, positive=3, init="mse"))
    images, _ = next(iter(where.batches(where.train, 250)))
    with_equal_probabilities(qann, images)
    before = site_statistics(qann, where)
    tuned(qann, start, NETWORK, where, EPOCHS, seed, **RECIPE)
    found = outcome(qann, where, before)
    return {key: found[key] for key in FOUND}


def groups() -> dict[tuple[str, ...], list[dict[str, float]]]:
    """The runs of the other studies, by study, network, number of levels, training of the steps, and seed."""
    found: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for study in ("sensitivity", "polarity"):
        path = RESULTS / f"{study}.csv"
        rows = list(csv.DictReader(path.open())) if path.exists() else []
        for row in rows:
            if row.get("gain") in ("offset", "pruned"):
                continue
            levels = "4" if study == "sensitivity" else str(int(row["negative"]) + int(row["positive"]) + 1)
            plain = str("plain steps" in row.get("strategy", ""))
            key = (study, row.get("network", NETWORK), levels, plain, row["seed"])
            values = {name: float(row[name]) for name in (*PREDICTORS, "test")}
            if all(map(math.isfinite, values.values())):  # a network of NaN has no place among the others
                found[key].append(values)
    return {key: rows for key, rows in found.items() if len(rows) >= _LEAST}


def analyse() -> list[dict[str, Any]]:
    """One row for each study and predictor."""
    table = []
    everything = groups()
    for study in ("sensitivity", "polarity", "both"):
        chosen = {key: rows for key, rows in everything.items() if study in (key[0], "both")}
        if not chosen:
            continue
        for predictor in PREDICTORS:
            pairs = {key: torch.tensor([[row[predictor], row["test"]] for row in rows]) for key, rows in chosen.items()}
            low, high = _interval(pairs)
            table.append(
                {
                    "study": study,
                    "predictor": predictor,
                    "groups": len(pairs),
                    "runs": sum(map(len, pairs.values())),
                    "rank_correlation": round(_mean_correlation(list(pairs.values())), 3),
                    "low": round(low, 3),
                    "high": round(high, 3),
                }
            )
    return table


def _interval(pairs: dict[tuple[str, ...], Tensor]) -> tuple[float, float]:
    """The middle 95 % of the mean correlation over bootstrap samples.

    Groups of one float network (study, network, seed) are drawn together, as often from each study as it has of them.
    """
    generator = torch.Generator().manual_seed(0)
    clusters: dict[str, dict[tuple[str, str], list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for (study, network, *_, seed), pair in pairs.items():
        clusters[study][network, seed].append(pair)

    def some(count: int) -> Tensor:
        return torch.randint(count, (count,), generator=generator)

    def sample() -> float:
        drawn = []
        for parents in clusters.values():
            each = list(parents.values())
            drawn += [pair for index in some(len(each)).tolist() for pair in each[index]]
        return _mean_correlation([p[some(len(p))] if len(p) >= _ENOUGH else p for p in drawn])

    drawn = torch.tensor([sample() for _ in range(_SAMPLES)])
    low, high = drawn[drawn.isfinite()].quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def _mean_correlation(pairs: list[Tensor]) -> float:
    rows = [(len(p) - 1, _spearman(p)) for p in pairs]
    kept = [(weight, value) for weight, value in rows if value == value]  # a sample of one value has no ranks
    return sum(weight * value for weight, value in kept) / sum(weight for weight, _ in kept) if kept else float("nan")


def _spearman(pair: Tensor) -> float:
    ranks = torch.stack([_ranks(pair[:, 0]), _ranks(pair[:, 1])])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, the mean of the places for equal values."""
    return ((values.unsqueeze(1) > values).sum(1) + (values.unsqueeze(1) >= values).sum(1) - 1).double() / 2.0


def main() -> None:
    torch.set_num_threads(1)
    if "--analyse" not in sys.argv:
        carry_out("entropy", (*ASKED, *FOUND), runs(), run, **options(__doc__))
        return
    table = analyse()
    with (RESULTS / "entropy_correlations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(", ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
