"""Specs: what they accept, what they refuse, and that they survive the way through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from polarspike.errors import SpecError
from polarspike.specs import ConvertSpec, QuantSpec, SiteSpec, Spec
from polarspike.training_spec import TrainSpec

ALL = [
    QuantSpec(),
    QuantSpec(2, 6, gain="learned", signed="all", granularity="channel", init="mse"),
    QuantSpec(0, 3, overrides={"layer1.*": QuantSpec(1, 4, gain=0.5), "head": QuantSpec(2, 2)}),
    SiteSpec(3, 4, gain=0.25, learned_gain=True, slope=0.1, ceiling=6.0, channels=8, init="lsq"),
    ConvertSpec(reading="frames"),
    ConvertSpec(neuron="holding", window=8),
    ConvertSpec(max_spikes_per_step=3),
    QuantSpec(inputs=True),
    SiteSpec(1, 2, channels=4, channel_dim=-1),
    TrainSpec(epochs=3, optimizer="adamw", learning_rate=1e-3, distillation=0.5, precision="bf16", seed=7),
]


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: type(spec).__name__)
def test_json_round_trip_gives_an_equal_spec(spec: Spec) -> None:
    data = json.loads(json.dumps(spec.to_dict()))
    assert type(spec).from_dict(data) == spec
    assert data["type"] == type(spec).__name__


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: type(spec).__name__)
def test_a_spec_is_frozen(spec: Spec) -> None:
    name = dataclasses.fields(spec)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, name, 1)


def test_later_changes_of_the_callers_overrides_do_not_reach_the_spec() -> None:
    overrides = {"a": QuantSpec(1, 1)}
    spec = QuantSpec(overrides=overrides)
    overrides["b"] = QuantSpec(2, 2)
    assert list(spec.overrides) == ["a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "TrainSpec"}, "expected the data of a QuantSpec, got type 'TrainSpec'"),
        ({"version": 99}, "expected version 1, got 99"),
        ({"wings": 2}, r"unknown fields \['wings'\]"),
        ({"positive": 2.0}, "an integer in 1..32768, got 2.0"),
    ],
)
def test_from_dict_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        QuantSpec.from_dict({**QuantSpec().to_dict(), **change})


def test_from_dict_names_missing_fields() -> None:
    with pytest.raises(SpecError, match=r"SiteSpec: missing fields \['negative', 'positive'\]"):
        SiteSpec.from_dict({"type": "SiteSpec", "version": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negative": -1}, "QuantSpec.negative: expected an integer in 0..32768, got -1"),
        ({"negative": True}, "QuantSpec.negative"),
        ({"negative": "2"}, "QuantSpec.negative"),
        ({"positive": 0}, "QuantSpec.positive: expected an integer in 1..32768, got 0"),
        ({"positive": 2**15 + 1}, "QuantSpec.positive"),
        ({"positive": 1.0}, "QuantSpec.positive"),
        ({"gain": 1.5}, r"QuantSpec.gain: expected a number in \[0, 1\] or 'learned', got 1.5"),
        ({"gain": -0.1}, "QuantSpec.gain"),
        ({"gain": math.nan}, "QuantSpec.gain"),
        ({"gain": None}, "QuantSpec.gain"),
        ({"gain": "half"}, "QuantSpec.gain"),
        ({"inputs": 1}, "QuantSpec.inputs: expected True or False, got 1"),
        ({"signed": "sometimes"}, "QuantSpec.signed: expected one of 'all', 'by-nature', 'none', got 'sometimes'"),
        ({"granularity": "pixel"}, "QuantSpec.granularity"),
        ({"init": "guess"}, "QuantSpec.init"),
        ({"negative": 0, "signed": "all"}, "signed='all' asks for negative levels at every site, but negative=0"),
        ({"negative": 0, "gain": "learned"}, "nothing to learn with negative=0"),
        ({"overrides": [1]}, "QuantSpec.overrides: expected a mapping"),
        ({"overrides": {"a": 3}}, r"QuantSpec.overrides\['a'\]: expected a QuantSpec, got int"),
        ({"overrides": {"a": QuantSpec(overrides={"b": QuantSpec()})}}, "without overrides of its own"),
    ],
)
def test_quant_spec_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        QuantSpec(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negative": -1}, "SiteSpec.negative"),
        ({"positive": 0}, "SiteSpec.positive"),
        ({"gain": math.nan}, "SiteSpec.gain"),
        ({"slope": 1.01}, "SiteSpec.slope"),
        ({"ceiling": 0.0}, "SiteSpec.ceiling"),
        ({"ceiling": math.inf}, "SiteSpec.ceiling"),
        ({"channels": -3}, "SiteSpec.channels"),
        ({"channel_dim": 2}, "SiteSpec.channel_dim: expected 1 or -1, got 2"),
        ({"init": "guess"}, "SiteSpec.init"),
    ],
)
def test_site_spec_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SiteSpec(**{"negative": 1, "positive": 2, **values})


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"optimizer": "lion"},
        {"learning_rate": 0.0},
        {"learning_rate": "0.1"},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"weight_decay": math.inf},
        {"warmup_epochs": 11},
        {"label_smoothing": 1.0},
        {"distillation": 1.1},
        {"temperature": 0},
        {"precision": "fp8"},
        {"seed": -1},
        {"seed": 2**31},
    ],
    ids=str,
)
def test_train_spec_refuses(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(SpecError, match=f"TrainSpec.{name}: expected .*, got {values[name]!r}"):
        TrainSpec(**values)


def test_convert_spec_refuses_an_unknown_reading() -> None:
    with pytest.raises(SpecError, match=r"ConvertSpec.reading: expected one of 'integrate', 'frames', 'channels', got"):
        ConvertSpec(reading="backwards")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neuron": "leaky"}, "ConvertSpec.neuron: expected one of 'polarity', 'holding', got 'leaky'"),
        ({"max_spikes_per_step": 0}, "ConvertSpec.max_spikes_per_step: expected a positive integer or None, got 0"),
        ({"max_spikes_per_step": True}, "ConvertSpec.max_spikes_per_step"),
        ({"window": 0}, "ConvertSpec.window: expected a positive integer or None, got 0"),
        ({"window": 2.0}, "ConvertSpec.window"),
        ({"max_spikes_per_step": 1, "neuron": "holding"}, "max_spikes_per_step needs neuron='polarity'.*leave one"),
        ({"max_spikes_per_step": 1, "reading": "frames"}, "leave out max_spikes_per_step, or use reading='integrate'"),
    ],
)
def test_convert_spec_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ConvertSpec(**values)


def test_the_first_matching_override_wins() -> None:
    first, second = QuantSpec(1, 1), QuantSpec(2, 2)
    spec = QuantSpec(overrides={"layer1.0.*": first, "layer1.*": second})
    assert spec.at("layer1.0.relu") is first
    assert spec.at("layer1.1.relu") is second
    assert spec.at("Layer1.1.relu") is spec  # patterns mind the case on every system
    assert spec.at("stem") is spec


def test_refined_multiplies_the_levels_alone() -> None:
    site = SiteSpec(2, 3, gain=0.5, channels=4)
    assert site.refined(3) == SiteSpec(6, 9, gain=0.5, channels=4)
    assert site.refined(1) == site
    assert site.levels == (2, 3)
