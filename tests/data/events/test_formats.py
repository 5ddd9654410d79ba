"""Event files in their real formats: written here byte by byte as their authors describe them, then read."""

from __future__ import annotations

import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from polarspike.data.events import EventStream, read_aedat, read_bin, read_npy, write_bin
from polarspike.errors import DataError, MissingExtraError

#: x, y, t, p of a few events, in the order of time.
EVENTS = [(0, 0, 5, 1), (33, 33, 5, 0), (12, 7, 70_000, 1), (3, 30, 8_000_000, 0)]


def stream(events: list[tuple[int, int, int, int]], size: tuple[int, int]) -> EventStream:
    x, y, t, p = zip(*events, strict=True)
    return EventStream.of(x, y, t, p, size)


def listed(events: EventStream) -> list[tuple[int, ...]]:
    return list(zip(events.x.tolist(), events.y.tolist(), events.t.tolist(), events.p.tolist(), strict=True))


def bin_bytes(events: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(bytes([x, y, (p << 7) | (t >> 16), (t >> 8) & 0xFF, t & 0xFF]) for x, y, t, p in events)


def aedat2_bytes(events: list[tuple[int, int, int, int]]) -> bytes:
    """As jAER writes a DVS128: the camera on its side, 127 - y in bits 1 to 7, 127 - x in bits 8 to 14, bit 0 for OFF."""
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Data format is int32 address\r\n"
    body = b"".join(struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - p), t) for x, y, t, p in events)
    return header + body


def aedat31_bytes(events: list[tuple[int, int, int, int]], per_packet: int = 2, overflow: int = 0) -> bytes:
    header = (
        b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-05-05 15:52:24\r\n#!END-HEADER\r\n"
    )
    other = struct.pack("<hhiiiiii", 3, 1, 36, 4, 0, 1, 1, 1) + bytes(36)  # a packet of inertia, to be passed over
    packets = [other]
    for first in range(0, len(events), per_packet):
        part = events[first : first + per_packet]
        body = b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for x, y, t, p in part)
        packets.append(struct.pack("<hhiiiiii", 1, 1, 8, 4, overflow, len(part), len(part), len(part)) + body)
    return header + b"".join(packets)


def test_bin_files_of_n_mnist(tmp_path: Path) -> None:
    path = tmp_path / "00001.bin"
    path.write_bytes(bin_bytes(EVENTS))
    found = read_bin(path, (34, 34))
    assert listed(found) == EVENTS and found.size == (34, 34)
    again = tmp_path / "again.bin"
    write_bin(again, found)
    assert again.read_bytes() == path.read_bytes()


def test_the_clock_of_a_bin_file_overflows(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bin_bytes([(1, 1, 8000, 1), (0, 240, 0, 0), (2, 2, 100, 0), (0, 240, 0, 0), (3, 3, 50, 1)]))
    assert listed(read_bin(path, (34, 34))) == [(1, 1, 8000, 1), (2, 2, 100 + 8192, 0), (3, 3, 50 + 2 * 8192, 1)]


def test_bin_files_that_are_not_whole_or_not_of_this_sensor(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bin_bytes(EVENTS)[:-2])
    with pytest.raises(DataError, match=r"a\.bin: expected 5 bytes for each event, got 18 bytes"):
        read_bin(path, (34, 34))
    path.write_bytes(bin_bytes([(40, 3, 1, 0)]))
    with pytest.raises(
        DataError, match=r"expected x in 0\.\.33, got 40\.\.40; it is damaged, or not of a sensor of 34x34"
    ):
        read_bin(path, (34, 34))
    with pytest.raises(DataError, match="not of a sensor of 34x50 pixels"):  # width x height, as sensors are named
        read_bin(path, (50, 34))
    with pytest.raises(DataError, match="expected a readable file"):
        read_bin(tmp_path / "nowhere.bin", (34, 34))
    path.write_bytes(b"")
    assert len(read_bin(path, (34, 34))) == 0
    with pytest.raises(DataError, match="rows below 240"):
        write_bin(path, stream([(0, 250, 0, 0)], (260, 260)))
    with pytest.raises(DataError, match=r"times in 0\.\.2\^23-1 us, got row 0, column 0, times -5\.\.7"):
        write_bin(path, stream([(0, 0, -5, 0), (0, 0, 7, 0)], (34, 34)))


def test_aedat_2_of_cifar10_dvs(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_airplane_0.aedat"
    events = [(0, 0, 10, 1), (127, 5, 11, 0), (64, 127, 2_000_000, 1)]
    path.write_bytes(aedat2_bytes(events))
    assert listed(read_aedat(path)) == events
    path.write_bytes(aedat2_bytes(events)[:-3])
    with pytest.raises(DataError, match="expected 8 bytes for each event, got 21 bytes"):
        read_aedat(path)
    path.write_bytes(b"#!AER-DAT2.0\r\n# no end")
    with pytest.raises(DataError, match="the header has no end"):
        read_aedat(path)


def test_a_file_may_be_named_by_its_path_or_a_string(tmp_path: Path) -> None:
    written = stream([(1, 2, 3, 1)], (34, 34))
    write_bin(str(tmp_path / "a.bin"), written)
    assert listed(read_bin(str(tmp_path / "a.bin"), (34, 34))) == [(1, 2, 3, 1)]
    (tmp_path / "a.aedat").write_bytes(aedat2_bytes([(0, 0, 10, 1)]))
    assert listed(read_aedat(str(tmp_path / "a.aedat"))) == [(0, 0, 10, 1)]
    np.save(tmp_path / "a.npy", np.array([[1, 2, 1, 3]]))
    assert listed(read_npy(str(tmp_path / "a.npy"))) == [(1, 2, 3000, 1)]
    for name in ("nowhere.aedat", "nowhere.npy"):
        with pytest.raises(DataError, match=f"{name}: expected a readable file"):
            (read_aedat if name.endswith("aedat") else read_npy)(str(tmp_path / name))


def words(*pairs: tuple[int, int], order: str = ">") -> bytes:
    return b"#!AER-DAT2.0\r\n" + b"".join(struct.pack(f"{order}II", address, t) for address, t in pairs)


def test_the_clock_of_aedat_2_wraps_and_external_events_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(words((0, 2**32 - 5), (0x8000, 2**32 - 3), (1, 4), (0, 9)))
    assert listed(read_aedat(path)) == [(127, 127, 2**32 - 5, 1), (127, 127, 2**32 + 4, 0), (127, 127, 2**32 + 9, 1)]
    path.write_bytes(words((0, 9), (1, 8)))  # the hardware's own slips are put in order
    assert listed(read_aedat(path)) == [(127, 127, 8, 0), (127, 127, 9, 1)]
    path.write_bytes(words())
    assert len(read_aedat(path)) == 0


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            words((5 << 22 | 7 << 12, 1)),
            "expected addresses of a DVS128, below 0x10000, got 0x1407000; .* another camera",
        ),
        (words((6, 10), (6, 11), order="<"), "its words are little-endian"),
        (words((0, 127), (0, 256), order="<"), "goes on, got 65536 us after 2130706432; .* byte order"),
        (words((0, 9_000_000), (0, 8)), "goes on, got 8 us after 9000000"),
    ],
    ids=["another camera", "addresses turned", "times turned", "times back"],
)
def test_what_is_no_aedat_2_of_a_dvs128(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.aedat: .*{text}"):
        read_aedat(path)


def test_aedat_31_of_dvs128_gesture(tmp_path: Path) -> None:
    path = tmp_path / "user01_led.aedat"
    path.write_bytes(aedat31_bytes(EVENTS))
    assert listed(read_aedat(path)) == EVENTS
    path.write_bytes(aedat31_bytes(EVENTS, overflow=1))
    assert read_aedat(path).t.tolist() == [t + (1 << 31) for _, _, t, _ in EVENTS]
    invalid = bytearray(aedat31_bytes(EVENTS, per_packet=4))
    invalid[-32] &= 0xFE  # the first event of the last packet is marked invalid
    path.write_bytes(invalid)
    assert listed(read_aedat(path)) == EVENTS[1:]


@pytest.mark.parametrize(
    ("cut", "text"), [(4, "events of 8 bytes runs? over the end"), (24, "has no whole header|runs? over the end")]
)
def test_truncated_aedat_31(tmp_path: Path, cut: int, text: str) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat31_bytes(EVENTS)[:-cut])
    with pytest.raises(DataError, match=text):
        read_aedat(path)


def test_what_is_no_aedat(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(b"#!AER-DAT1.0\r\n")
    with pytest.raises(DataError, match=r"expected the first line #!AER-DAT2\.0, 3\.1 or 4\.0, got"):
        read_aedat(path)
    path.write_bytes(b"#!AER-DAT3.1\r\n#Format: RAW\r\n")
    with pytest.raises(DataError, match="ends with #!END-HEADER"):
        read_aedat(path)
    body = struct.pack("<hhiiiiii", 1, 1, 12, 4, 0, 1, 1, 1) + bytes(12)
    path.write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + body)
    with pytest.raises(DataError, match="expected polarity events of 8 bytes, got 12"):
        read_aedat(path)


def test_compressed_aedat_31_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat31_bytes(EVENTS).replace(b"RAW", b"SerializedTS"))
    with pytest.raises(DataError, match=r"a\.aedat: expected the line '#Format: RAW', got b'#Format: SerializedTS'"):
        read_aedat(path)
    packed = struct.pack("<hhiiiiii", 1 - (1 << 15), 1, 8, 4, 0, 16, 2, 2) + bytes(16)
    path.write_bytes(aedat31_bytes(EVENTS) + packed)
    with pytest.raises(DataError, match=r"a\.aedat: expected packets as they are, got a compressed one"):
        read_aedat(path)


class Panic(BaseException):
    """As the decoder's: no Exception."""


@pytest.mark.parametrize(("raised", "seen"), [(Panic, DataError), (OSError, DataError), (KeyboardInterrupt,) * 2])
def test_damaged_aedat_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException], seen: type[BaseException]
) -> None:
    def decoder(path: str) -> None:
        raise raised("range end")

    monkeypatch.setitem(sys.modules, "aedat", types.SimpleNamespace(Decoder=decoder))
    path = tmp_path / "a.aedat4"
    path.write_bytes(b"#!AER-DAT4.0\r\n" + bytes(20))
    with pytest.raises(seen, match="range end"):
        read_aedat(path)


def test_aedat_4_names_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aedat", None)
    path = tmp_path / "a.aedat4"
    path.write_bytes(b"#!AER-DAT4.0\r\n" + bytes(20))
    with pytest.raises(MissingExtraError, match=r"'aedat'.*polarspike\[events\]"):
        read_aedat(path)


def test_npy_files_of_dvs128_gesture(tmp_path: Path) -> None:
    path = tmp_path / "3.npy"
    np.save(path, np.array([[1, 2, 1, 0.5], [3, 4, 0, 7.0]]))  # x, y, p, t in milliseconds
    assert listed(read_npy(path)) == [(1, 2, 500, 1), (3, 4, 7000, 0)]
    np.save(path, np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"expected columns x, y, p, t, got float64 \(3, 5\)"):
        read_npy(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="expected an array of numbers"):
        read_npy(path)
    with path.open("wb") as file:
        np.savez(file, np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"3\.npy: expected one array of numbers, got an archive"):
        read_npy(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match="expected an array of numbers"):
        read_npy(path)


def test_milliseconds_are_rounded_to_microseconds(tmp_path: Path) -> None:
    times = np.arange(5000)
    table = np.zeros((5000, 4))
    table[:, 3] = times / 1000
    np.save(tmp_path / "3.npy", table)
    assert np.array_equal(read_npy(tmp_path / "3.npy").t, times)


@pytest.mark.parametrize("row", [[1.5, 2, 1, 0], [1, 2.25, 1, 0], [1, 2, 0.5, 0], [1, 2, 1, np.nan], [1, 2, 1, np.inf],
                                 [np.nan, 2, 1, 0], [1, 2, 1, 1e16]])  # fmt: skip
def test_numbers_that_no_event_has(tmp_path: Path, row: list[float]) -> None:
    np.save(tmp_path / "3.npy", np.array([[0, 0, 0, 0], row], dtype=np.float64))
    with pytest.raises(DataError, match=r"3\.npy: events: expected [xytp] as whole numbers below 2\^63, got"):
        read_npy(tmp_path / "3.npy")


def test_a_stream_is_checked_and_put_in_order() -> None:
    found = EventStream.of([1, 2], [0, 0], [9, 3], [0, 1], (4, 4))
    assert found.t.tolist() == [3, 9] and found.x.tolist() == [2, 1]
    assert len(found.between(3, 9)) == 1
    with pytest.raises(DataError, match="as many x, y, t and p"):
        EventStream.of([1], [0, 0], [1], [0], (4, 4))
    with pytest.raises(DataError, match=r"expected p in 0\.\.1, got 2\.\.2"):
        EventStream.of([1], [0], [1], [2], (4, 4))
    with pytest.raises(DataError, match=r"expected t as whole numbers below 2\^63, got 9223372036854775808"):
        EventStream.of([1], [0], np.array([2**63], dtype=np.uint64), [1], (4, 4))
    zero = np.zeros(2, dtype=np.int64)
    with pytest.raises(DataError, match=r"never decrease, got 3 after 9; EventStream\.of puts them in order"):
        EventStream(zero, zero, np.array([9, 3]), zero, (4, 4))
