"""AEDAT 4 recordings, written here as iniVation describes the format, read by the package of the extra ``events``.

A file is a line of version, a header in FlatBuffers, and packets: the number of their stream, their size, and events in
FlatBuffers. Uncompressed, so that every byte here is one of the description.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch

from polarspike.data.events import FrameSpec, load_events, published, read_aedat
from polarspike.errors import DataError

from .layouts import COUNTS, Events, cifar10_dvs
from .test_formats import listed

pytest.importorskip("aedat", reason="reads AEDAT 4: pip install 'polarspike[events]'")

EVENTS = [(0, 0, 5, 1), (127, 126, 5, 0), (12, 7, 70_000, 1), (3, 30, 8_000_000_000, 0)]
UNCOMPRESSED = 0
#: A folder of recordings that no package of ours brings; docs/measurements.md says how to get them.
RECORDINGS = "POLARSPIKE_RECORDINGS"
DAVIS = Path(os.environ.get(RECORDINGS, ""), "davis346.aedat4")


def sized(buffer: bytes) -> bytes:
    return struct.pack("<I", len(buffer)) + buffer


def described(module: str, kind: str, side: int) -> bytes:
    """The header's tree of attributes, with one stream."""
    path = "/mainloop/Recorder/outInfo/"
    size = "".join(f'<attr key="size{axis}" type="int">{side}</attr>' for axis in "XY")
    return (
        f'<dv version="2.0"><node name="outInfo" path="{path}"><node name="0" path="{path}0/">'
        f'<attr key="compression" type="string">NONE</attr>'
        f'<attr key="originalModuleName" type="string">{module}</attr>'
        f'<attr key="originalOutputName" type="string">events</attr>'
        f'<attr key="typeDescription" type="string">Array of events (polarity ON/OFF).</attr>'
        f'<attr key="typeIdentifier" type="string">{kind}</attr>'
        f'<node name="info" path="{path}0/info/">{size}<attr key="source" type="string">DVS128</attr></node>'
        "</node></node></dv>"
    ).encode()


def header(tree: bytes) -> bytes:
    """FlatBuffers table ``IOHE``: compression, where the table of packets lies (nowhere), and the tree."""
    vtable = struct.pack("<5H2x", 10, 24, 4, 12, 20)  # its own size, the table's, where the three fields lie in it
    table = struct.pack("<iiiqI", 12, UNCOMPRESSED, 0, -1, 4)
    return sized(struct.pack("<I4s", 20, b"IOHE") + vtable + table + struct.pack("<I", len(tree)) + tree + b"\0")


def packet(events: Events) -> bytes:
    """FlatBuffers table ``EVTS``: a vector of structs of time, column, row and polarity."""
    body = b"".join(struct.pack("<qhh?3x", t, x, y, p) for x, y, t, p in events)
    start = struct.pack("<I4s", 16, b"EVTS") + struct.pack("<3H2x", 6, 8, 4) + struct.pack("<iI", 8, 8)
    buffer = sized(start + struct.pack("<4xI", len(events)) + body)
    return struct.pack("<iI", 0, len(buffer)) + buffer


def aedat4_bytes(events: Events, per_packet: int = 2, side: int = 128) -> bytes:
    packets = [packet(events[first : first + per_packet]) for first in range(0, len(events), per_packet)]
    return b"#!AER-DAT4.0\r\n" + header(described("DVS128", "EVTS", side)) + b"".join(packets)


@pytest.mark.parametrize("per_packet", [1, 2, 4])
def test_events_of_all_packets(tmp_path: Path, per_packet: int) -> None:
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4_bytes(EVENTS, per_packet))
    found = read_aedat(path)
    assert listed(found) == EVENTS and found.size == (128, 128)


@pytest.mark.skipif(RECORDINGS not in os.environ, reason=f"reads a recording of a camera: {RECORDINGS}=FOLDER")
def test_a_recording_of_a_camera_is_read_whole() -> None:
    assert DAVIS.is_file(), f"expected {DAVIS}, as docs/measurements.md says how to get it; or leave {RECORDINGS} unset"
    found = read_aedat(DAVIS, (260, 346))
    assert len(found) == 78_830 and found.size == (260, 346)
    assert round((int(found.t[-1]) - int(found.t[0])) / 1e6, 2) == 2.36
    assert (int(found.x.max()), int(found.y.max())) == (
        345,
        259,
    ) and 0 < found.p.mean() < 1  # all of the sensor, both signs
    with pytest.raises(DataError, match=r"davis346\.aedat4: .*not of a sensor of 128x128 pixels"):
        read_aedat(DAVIS)


def test_a_recording_of_a_larger_sensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4_bytes([(345, 259, 1, 1)], side=346))
    with pytest.raises(DataError, match=r"a\.aedat4: .*not of a sensor of 128x128 pixels"):
        read_aedat(path)


@pytest.mark.parametrize("left", [14, 60, 500, -1, -9])
def test_truncated_files(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4_bytes(EVENTS)[:left])
    with pytest.raises(DataError, match=r"a\.aedat4: expected an AEDAT 4 file, got"):
        read_aedat(path)


def test_the_data_set_of_converted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR10-DVS is passed on as AEDAT 4, too: the same frames, parts and labels as from the files it was made of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "COUNTS", COUNTS)
    roots = cifar10_dvs(tmp_path / "a"), cifar10_dvs(tmp_path / "b", "aedat4", aedat4_bytes)
    first, second = (load_events("cifar10-dvs", root, FrameSpec(bins=2)) for root in roots)
    for part in ("train", "test"):
        expected, got = getattr(first, part), getattr(second, part)
        assert torch.equal(expected.images, got.images) and torch.equal(expected.labels, got.labels)
