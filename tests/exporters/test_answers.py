"""Answers in containers: every tensor is written and named by its place, and what no file holds is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import integer
from polarspike.errors import ExportError

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Answering(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.head, self.aux = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.form(self.head(x), self.aux(x))


def answering(form: Callable[[Tensor, Tensor], Any]) -> ps.SpikingNetwork:
    torch.manual_seed(0)
    qann = ps.quantize(Answering(form).eval(), ps.QuantSpec(negative=2, positive=6), example=X)
    ps.calibrate(qann, [X])
    return ps.convert(qann)


@pytest.mark.parametrize(
    ("form", "places"),
    [
        (lambda head, aux: {"z": head, "aux": [aux, None]}, ["z", "aux.0"]),
        (lambda head, aux: (aux, None, head), ["0", "2"]),
        (lambda head, aux: {"logits": head, "loss": None}, ["logits"]),
        (lambda head, aux: head + aux, None),
    ],
)
def test_a_file_says_where_its_outputs_stand_in_the_answer(form: Any, places: list[str] | None, tmp_path: Path) -> None:
    snn = answering(form)
    report = ps.export(snn, tmp_path / "net", format="integer", example=X)
    assert report.compared == 12 * len(places or [""])
    made = integer.load(tmp_path / "net")
    assert json.loads(made.description).get("outputs") == places
    outputs = integer.run(made, {made.inputs[0][0]: X.numpy()})
    wanted = [leaf for leaf in torch.utils._pytree.tree_leaves(snn(X)) if leaf is not None]
    for got, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want.detach(), atol=0.05, rtol=0.0)


@pytest.mark.parametrize("format_name", ["integer", "onnx-int8", "onnx-float", "nir"])
@pytest.mark.parametrize(
    ("form", "says"),
    [
        (lambda head, aux: {"logits": head, "scale": 2.0}, r"got 2.0 at answer\['scale'\]"),
        (lambda head, aux: (head, head.shape[0]), r"got 4 at answer\[1\]"),
        (lambda head, aux: (head, torch.tensor(3)), r"got a tensor of torch.int64 at answer\[1\]"),
    ],
)
def test_what_is_no_float_tensor_is_refused(form: Any, says: str, format_name: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=rf"^{format_name}: expected an answer of float tensors, {says}; leave it out"
    ):
        ps.export(answering(form), tmp_path / "net", format=format_name, example=X)


def test_an_exported_program_answers_in_the_containers_of_the_network(tmp_path: Path) -> None:
    snn = answering(lambda head, aux: {"logits": head, "rest": (aux, 2.0, None)})
    assert ps.export(snn, tmp_path / "net.pt2", format="torch-export", example=X).exact
    answer = torch.export.load(tmp_path / "net.pt2").module()(X)
    assert answer["rest"][1:] == (2.0, None) and torch.equal(answer["logits"], snn(X)["logits"])
