"""Which parts of a training recipe make few levels enough? Chosen on validation images; one thing changed at a time.

    python benchmarks/studies/recipe.py [--list] [--part 0 --parts 2]

ResNet with 7 sites, 14x14 images, 4 epochs of fine-tuning from a float network of 8. ``base`` is fine-tuning on cross
entropy at a rate of .05 with a step rate of .2, the last weights; ``plain steps`` leaves the steps to the optimizer of the
weights with LSQ's gradient; ``gradual`` spends one epoch each at P = 7 and P = 3 before. ``early`` quantizes after two of
the twelve epochs, and fine-tunes for ten at the rate of a float network. ``float`` continues the float network alike.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from _run import EARLY_RECIPE, RECIPE, accuracies, differing_codes, firing, quantized, tuned
from _setting import parent, setting
from _table import Row, carry_out, options

import polarspike as ps

NETWORK, PARENT_EPOCHS, EPOCHS = "resnet", 8, 4
EARLY = 2
ASKED = ("recipe", "levels", "seed")
FOUND = ("validation", "test", "events", "spikes", "different")

#: Every recipe as the options of TrainSpec that differ from ``base``.
RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "rate .1": {"learning_rate": 0.1},
    "distillation .9 at temperature 4": {"distillation": 0.9, "temperature": 4.0},
    "rate .1, distillation .9 at temperature 4": {"learning_rate": 0.1, "distillation": 0.9, "temperature": 4.0},
    "averaging": {"averaging": 0.998},
    "gradual": {},
    "plain steps": {"step_rate": 0.0},
    "step rate .05": {"step_rate": 0.05},
    "step rate .5": {"step_rate": 0.5},
    "distillation .5 at temperature 4": {"distillation": 0.5, "temperature": 4.0},
    "distillation .5": {"distillation": 0.5},
    "step rate .01": {"step_rate": 0.01},
    "early": EARLY_RECIPE,
    "label smoothing .1": {"label_smoothing": 0.1},
    "early, label smoothing .1": {**EARLY_RECIPE, "label_smoothing": 0.1},
}


def runs() -> list[Row]:
    """One seed for the screen."""
    levels = ("(0, 3)", "(1, 1)")
    return [
        {"recipe": recipe, "levels": level, "seed": 0}
        for recipe in RECIPES
        for level in ("float", *levels)
        # A float network has no steps and no levels.
        if level != "float" or not ("step_rate" in RECIPES[recipe] or recipe == "gradual")
    ]


def run(asked: Row) -> Row:
    """Train and measure one row."""
    where, seed = setting("small"), asked["seed"]
    before = EARLY if asked["recipe"].startswith("early") else PARENT_EPOCHS
    after = PARENT_EPOCHS + EPOCHS - before
    start = parent(NETWORK, seed, where, before)
    recipe = {**RECIPE, **RECIPES[asked["recipe"]]}
    if asked["levels"] == "float":
        model = tuned(copy.deepcopy(start), start, NETWORK, where, after, seed, **{**recipe, "step_rate": 0.0})
        return accuracies(model, where)
    negative, positive = (int(part) for part in asked["levels"].strip("()").split(","))
    signed: Any = "all" if negative else "by-nature"
    gradual = ((7, 1), (3, 1), (positive, EPOCHS - 2)) if asked["recipe"] == "gradual" else ((positive, after),)
    qann: ps.QuantizedNetwork | None = None
    for high, epochs in gradual:
        # A quantized network is captured again: its weights go on, and its steps start anew for the fewer levels.
        source = copy.deepcopy(start)
        if qann is not None:
            source.load_state_dict({k: v for k, v in qann.network.state_dict().items() if k in source.state_dict()})
        spec = ps.QuantSpec(negative, high, "learned" if negative else 1.0, signed, init="mse")
        qann = tuned(quantized(source, where, spec), start, NETWORK, where, epochs, seed, **recipe)
    assert qann is not None  # there is one way of levels at least
    found = firing(qann, where.batches(where.test))
    return {
        **accuracies(qann, where),
        "events": found["events"],
        "spikes": found["spikes"],
        "different": differing_codes(qann, where),
    }


def main() -> None:
    torch.set_num_threads(1)
    carry_out("recipe", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
