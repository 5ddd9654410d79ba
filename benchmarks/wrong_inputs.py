"""Wrong inputs, and what each of them says. Exits with the number of inputs that were accepted or met another error.

python benchmarks/wrong_inputs.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.runs import RunDirectory


class Branching(nn.Module):
    """Control flow on the values of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        if y.sum() > 0:
            y = y + 1
        return y


class Body(nn.Module):
    """A layer, and whatever a case does behind it."""

    def __init__(self, body: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.head, self.body = layer or nn.Linear(4, 4), nn.Linear(4, 4), body

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        answer: Tensor = self.head(self.body(torch.relu(y[0] if isinstance(y, tuple) else y)))
        return answer


def altered_behind_a_view(x: Tensor) -> Tensor:
    view = x.view(-1, 2, 2)
    x.add_(1.0)
    return x + view.flatten(1)


def main() -> None:
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    images, rows = torch.randn(8, 1, 8, 8), torch.randn(2, 4)
    model = ps.models.create("cnn", num_classes=10, in_channels=1, width=4).eval()
    spec = ps.QuantSpec(0, 7)
    qann = ps.quantize(model, spec, example=images)
    ps.calibrate(qann, [images])
    snn = ps.convert(qann)
    ps.save(snn, folder / "snn.safetensors")
    spoiled = images.clone()
    spoiled[3] = float("nan")
    broken = ps.models.create("cnn", num_classes=10, in_channels=1, width=4)
    with torch.no_grad():
        next(broken.parameters())[0] = float("nan")
    (folder / "text.safetensors").write_text("this is no checkpoint")
    whole = (folder / "snn.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    other = ps.models.create("mlp", num_classes=10, in_channels=1, image_size=8)
    (folder / "file").write_text("in the way")

    def uncalibrated() -> Any:
        return ps.quantize(model, spec, example=images)

    cases: dict[str, Callable[[], Any]] = {
        "NaN image, calibrate": lambda: ps.calibrate(uncalibrated(), [images, spoiled]),
        "NaN image, evaluate": lambda: ps.evaluate(snn, [(spoiled, torch.zeros(8, dtype=torch.long))]),
        "NaN image, verify": lambda: ps.verify(qann, snn, [spoiled]),
        "NaN weight": lambda: ps.quantize(broken, spec, example=images),
        "empty loader, calibrate": lambda: ps.calibrate(uncalibrated(), []),
        "empty loader, evaluate": lambda: ps.evaluate(snn, []),
        "empty loader, verify": lambda: ps.verify(qann, snn, []),
        "model without activation": lambda: ps.quantize(nn.Sequential(nn.Conv2d(1, 2, 3)), spec, example=images),
        "unknown activation": lambda: ps.quantize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU()), spec, example=images),
        "control flow": lambda: ps.quantize(Branching(), spec, example=torch.randn(2, 4)),
        "in-place change that a view shows": lambda: ps.quantize(Body(altered_behind_a_view), spec, example=rows),
        "functional dropout": lambda: ps.quantize(Body(lambda x: nn.functional.dropout(x, 0.5)), spec, example=rows),
        "random numbers": lambda: ps.quantize(Body(lambda x: x + torch.rand(4)), spec, example=rows),
        "argmax": lambda: ps.quantize(Body(lambda x: x + x.argmax(1, keepdim=True)), spec, example=rows),
        "comparison": lambda: ps.quantize(Body(lambda x: torch.where(x > 1.0, x, 0.0)), spec, example=rows),
        "complex numbers": lambda: ps.quantize(Body(lambda x: torch.fft.fft(x).abs()), spec, example=rows),
        "sparse input": lambda: ps.quantize(Body(torch.relu), spec, example=rows.to_sparse()),
        "recurrent layer": lambda: ps.quantize(Body(torch.relu, nn.LSTM(4, 4)), spec, example=torch.randn(2, 3, 4)),
        "wrong channel number, quantize": lambda: ps.quantize(model, spec, example=torch.randn(2, 3, 8, 8)),
        "wrong channel number, run": lambda: snn(torch.randn(2, 3, 8, 8)),
        "not calibrated": lambda: ps.convert(uncalibrated()),
        "text file as checkpoint": lambda: ps.load(folder / "text.safetensors"),
        "truncated checkpoint": lambda: ps.load(folder / "truncated.safetensors"),
        "checkpoint of another model": lambda: ps.load(folder / "snn.safetensors", other),
        "missing checkpoint": lambda: ps.load(folder / "missing.safetensors"),
        "unknown dataset": lambda: ps.data.load("fashon-mnist"),
        "unknown model": lambda: ps.models.create("resnet21", num_classes=10),
        "unwritable run directory": lambda: RunDirectory("/proc/run" if os.geteuid() == 0 else "/run-of-nobody"),
        "run directory below a file": lambda: RunDirectory(folder / "file" / "run"),
        "contradictory levels": lambda: ps.QuantSpec(negative=0, positive=4, signed="all"),
    }
    failures = 0
    for name, case in cases.items():
        try:
            case()
        except ps.PolarspikeError as error:
            print(f"{name}\n    {type(error).__name__}: {str(error).replace(str(folder), '<folder>')}")
        except Exception as error:
            failures += 1
            print(f"{name}\n    NOT OURS: {type(error).__name__}: {error}")
        else:
            failures += 1
            print(f"{name}\n    ACCEPTED")
    raise SystemExit(failures)


if __name__ == "__main__":
    main()
