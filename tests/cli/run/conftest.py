"""Exported files, pictures, and ``polarspike run`` over them in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike import cli
from tests.cli.run.asking import GREY_NOTES, NOTES
from tests.cli.running import Call
from tests.networks import calibrated


def spiking(channels: int, classes: int) -> ps.SpikingNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 8, classes))
    return ps.convert(calibrated(model.eval(), ps.QuantSpec(0, 7), torch.randn(16, channels, 8, 10)))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exported files of networks of colour and of grey pictures of 8 x 10 pixels."""
    folder = tmp_path_factory.mktemp("exported")
    colour, grey = spiking(3, 3), spiking(1, 2)
    x = torch.randn(16, 3, 8, 10)
    ps.export(colour, folder / "silent.integer", "integer", x)
    colour.notes, grey.notes = NOTES, GREY_NOTES
    ps.export(colour, folder / "net.onnx", "onnx-int8", x)
    ps.export(colour, folder / "net.integer", "integer", x)
    ps.export(grey, folder / "grey.integer", "integer", x[:, :1])
    ps.save(colour, folder / "snn.safetensors")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures that fit, larger and smaller ones, grey ones, one with transparency, in two folders."""
    from PIL import Image  # here: where it is missing, the tests are skipped

    generator, folder = np.random.default_rng(0), tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, shape in {
        "fits.png": (8, 10, 3),
        "large.jpg": (40, 30, 3),
        "small.png": (3, 5, 3),
        "thin.PNG": (1, 300, 3),
        "grey.png": (9, 9),
        "more/clear.png": (20, 12, 4),
    }.items():
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main(["run", *map(str, arguments)])
        except SystemExit as leave:
            code = int(leave.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
