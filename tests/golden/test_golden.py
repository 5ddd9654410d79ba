"""Files written once, and what they answered then: the format is read, and no number has moved. See make.py."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import polarspike as ps
from polarspike import integer
from tests.golden.make import EXACT, FILES, counted, seen


def kept(name: str) -> dict[str, Tensor]:
    return load_file(FILES / f"{name}.answers.safetensors")


def loaded(name: str) -> ps.SpikingNetwork:
    snn = ps.load(FILES / f"{name}.safetensors")
    assert isinstance(snn, ps.SpikingNetwork)
    return snn


@pytest.mark.parametrize("name", EXACT)
def test_every_code_and_answer_is_what_it_was(name: str) -> None:
    expected = kept(name)
    x = expected.pop("x")
    now = seen(loaded(name), x)
    assert now.keys() == expected.keys() and len(now) > 5
    different = [key for key, value in expected.items() if not torch.equal(now[key], value)]
    assert different == []


def test_codes_behind_a_softmax_are_what_they_were() -> None:
    expected = kept("attention")
    x = expected.pop("x")
    now = seen(loaded("attention"), x)
    assert now.keys() == expected.keys()
    different = [key for key in now if key.startswith("codes/1/") and not torch.equal(now[key], expected[key])]
    assert different == []  # no input of a site is near a boundary
    torch.testing.assert_close(now["answers"][0], expected["answers"][0])


@pytest.mark.parametrize("name", [*EXACT, "attention"])
def test_counts_are_what_they_were(name: str) -> None:
    assert json.loads(counted(loaded(name), kept(name)["x"])) == json.loads(
        (FILES / f"{name}.counts.json").read_text(encoding="utf-8")
    )


def test_a_quantized_network_converts_to_the_spiking_one_of_then() -> None:
    qann = ps.load(FILES / "quantized.safetensors")
    assert isinstance(qann, ps.QuantizedNetwork)
    expected = kept("plain")
    now = seen(ps.convert(qann), expected["x"])
    assert all(torch.equal(now[key], value) for key, value in expected.items() if key != "x")


def test_whole_numbers_are_what_they_were() -> None:
    expected = kept("whole_numbers")
    x = expected.pop("x")
    now = dict(integer.trace(integer.load(FILES / "whole_numbers.safetensors"), {"x": x.numpy()}))
    assert now.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(torch.from_numpy(now[name]), value)]
    assert different == []


def test_a_network_through_time_answers_what_it_did() -> None:
    network = ps.load(FILES / "temporal.safetensors")
    expected = kept("temporal")
    with torch.no_grad():
        torch.testing.assert_close(network(expected["x"]), expected["answer"])
