"""The files of event cameras: read as published, byte by byte, without the packages that usually read them.

    .bin      N-MNIST, N-Caltech101: 5 bytes an event, x, y, then p and t in 1 + 23 bits (big-endian, microseconds);
              y = 240 marks an overflow of the clock by 2^13
    .aedat    version 2.0 (CIFAR10-DVS, jAER): lines that begin with '#', then pairs of big-endian 32-bit words, address and
              microseconds; a DVS128 uses 15 bits of the address, and bit 15 marks an external event. Version 3.1
              (DVS128 Gesture): a header up to '#!END-HEADER', then packets of 28 bytes of little-endian description and
              8 bytes an event; a type with bit 15 is a compressed packet, which is refused
    .npy      DVS128 Gesture as tonic packs it: (N, 4) of x, y, p, t in milliseconds
    .aedat4   needs the package aedat (extra ``events``)

A reader may find no event in a file; a data set refuses a sample of none.

Sources: the README of N-MNIST (Orchard et al. 2015), iniVation's description of AEDAT.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile

import numpy as np
from numpy.typing import NDArray

from polarspike.common.files import replacing
from polarspike.data.events.streams import EventStream
from polarspike.data.reading import bytes_of
from polarspike.errors import DataError, MissingExtraError

_BIN_EVENT = 5
_OVERFLOW_ROW, _OVERFLOW = 240, 1 << 13
_BIN_SPAN = 1 << 23
_PACKET = struct.Struct("<hhiiiiii")  # type, source, size, offset of t, overflow of t, capacity, number, valid
_POLARITY, _EVENT_BYTES = 1, 8
_HEADER_END = b"#!END-HEADER"
# Early hardware lets the time slip back now and then (iniVation on AEDAT 1.0); this much is no slip, in microseconds.
_JUMP_US = 1_000_000
_EXTERNAL, _CLOCK = 1 << 15, 1 << 32  # of AEDAT 2.0: not of a pixel; where the clock begins again


def read_bin(path: str | os.PathLike[str], size: tuple[int, int]) -> EventStream:
    """A file of N-MNIST or N-Caltech101.

    Raises:
        DataError: no whole number of events, or one outside of the sensor.
    """
    content = bytes_of(path)
    if len(content) % _BIN_EVENT:
        raise DataError(
            f"{path}: expected {_BIN_EVENT} bytes for each event, got {len(content)} bytes, no whole number of events; "
            "the file is truncated, unpack it again"
        )
    raw = np.frombuffer(content, dtype=np.uint8).reshape(-1, _BIN_EVENT).astype(np.int64)
    x, y = raw[:, 0], raw[:, 1]
    t = ((raw[:, 2] & 0x7F) << 16) | (raw[:, 3] << 8) | raw[:, 4]
    overflow = y == _OVERFLOW_ROW
    t = t + _OVERFLOW * np.cumsum(overflow)
    kept = ~overflow
    return _stream(path, x[kept], y[kept], t[kept], (raw[:, 2] >> 7)[kept], size)


def write_bin(path: str | os.PathLike[str], events: EventStream) -> None:
    """The same format; the file appears whole or not at all.

    Raises:
        DataError: an event that it cannot hold: a row above 239, a column above 255, or a time outside 0..2^23-1 us.
    """
    if len(events):
        first, last = int(events.t[0]), int(events.t[-1])
        if events.y.max() >= _OVERFLOW_ROW or events.x.max() > 255 or first < 0 or last >= _BIN_SPAN:
            raise DataError(
                f"{path}: the format holds rows below 240, columns below 256 and times in 0..2^23-1 us, got row "
                f"{events.y.max()}, column {events.x.max()}, times {first}..{last}"
            )
    high = (events.p << 7) | (events.t >> 16)
    raw = np.stack([events.x, events.y, high, (events.t >> 8) & 0xFF, events.t & 0xFF], axis=1).astype(np.uint8)
    with replacing(path) as partial:
        partial.write_bytes(raw.tobytes())


def read_aedat(path: str | os.PathLike[str], size: tuple[int, int] = (128, 128)) -> EventStream:
    """An AEDAT file of version 2.0 (of a DVS128) or 3.1; its first line says which.

    Raises:
        DataError: another version, camera or byte order, a compressed or truncated file, or an event outside of the
            sensor.
        MissingExtraError: version 4 without the package aedat.
    """
    content = bytes_of(path)
    first = content[:64].partition(b"\n")[0].strip()
    if first == b"#!AER-DAT2.0":
        return _aedat2(path, content, size)
    if first == b"#!AER-DAT3.1":
        return _aedat31(path, content, size)
    if first.startswith(b"#!AER-DAT4.0"):
        return _aedat4(path, size)
    raise DataError(f"{path}: expected the first line #!AER-DAT2.0, 3.1 or 4.0, got {first[:40]!r}")


def read_npy(path: str | os.PathLike[str], size: tuple[int, int] = (128, 128)) -> EventStream:
    """Columns x, y, p, t (milliseconds).

    Raises:
        DataError: not such an array, x, y or p is no whole number, or a time is not finite or too large.
    """
    try:
        table = np.load(io.BytesIO(bytes_of(path)), allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected an array of numbers, got: {error}") from error
    if not isinstance(table, np.ndarray):
        raise DataError(
            f"{path}: expected one array of numbers, got an archive of several (.npz); save its array as .npy"
        )
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
        raise DataError(f"{path}: expected columns x, y, p, t, got {table.dtype} {table.shape}")
    microseconds = np.rint(table[:, 3].astype(np.float64) * 1000)
    return _stream(path, table[:, 0], table[:, 1], microseconds, table[:, 2], size)


def _aedat2(path: str | os.PathLike[str], content: bytes, size: tuple[int, int]) -> EventStream:
    start = 0
    while content[start : start + 1] == b"#":
        end = content.find(b"\n", start)
        if end < 0:
            raise DataError(f"{path}: the header has no end; the file is truncated")
        start = end + 1
    body = content[start:]
    if len(body) % 8:
        raise DataError(f"{path}: expected 8 bytes for each event, got {len(body)} bytes; the file is truncated")
    words = np.frombuffer(body, dtype=">u4").astype(np.int64).reshape(-1, 2)
    address, t = words[:, 0], _unwrapped(path, words[:, 1])
    if len(address) and address.max() >= 2 * _EXTERNAL:
        raise DataError(
            f"{path}: expected addresses of a DVS128, below 0x{2 * _EXTERNAL:x}, got 0x{address.max():x}; it is of "
            "another camera, or its words are little-endian"
        )
    pixel = address < _EXTERNAL
    address, t = address[pixel], t[pixel]
    height, width = size
    # The camera stood on its side: the address's column is our row, both counted from the far end; bit 0 is 1 for darker.
    x = width - 1 - ((address >> 8) & 0x7F)
    y = height - 1 - ((address >> 1) & 0x7F)
    return _stream(path, x, y, t, 1 - (address & 1), size)


def _unwrapped(path: str | os.PathLike[str], t: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times of a clock of 32 bits as it went on; what came out of turn is put in order later."""
    steps = np.diff(t)
    wraps = steps < -_CLOCK // 2
    if len(back := np.flatnonzero((steps < -_JUMP_US) & ~wraps)):
        raise DataError(
            f"{path}: expected a clock that goes on, got {t[back[0] + 1]} us after {t[back[0]]}; it is damaged, or "
            "its words are little-endian: the byte order must be big-endian"
        )
    unwrapped = t.copy()
    unwrapped[1:] += _CLOCK * np.cumsum(wraps)
    return unwrapped


def _aedat31(path: str | os.PathLike[str], content: bytes, size: tuple[int, int]) -> EventStream:
    place = content.find(_HEADER_END)
    end = content.find(b"\n", place)
    if place < 0 or end < 0:
        raise DataError(f"{path}: expected a header that ends with {_HEADER_END.decode()}; the file is truncated")
    for line in content[:place].splitlines():
        if line.startswith(b"#Format:") and line.partition(b":")[2].strip() != b"RAW":
            raise DataError(f"{path}: expected the line '#Format: RAW', got {line[:40]!r}; save it uncompressed")
    offset, parts = end + 1, []
    while offset < len(content):
        if offset + _PACKET.size > len(content):
            raise DataError(f"{path}: the last packet has no whole header; the file is truncated")
        kind, _, length, _, overflow, _, number, _ = _PACKET.unpack_from(content, offset)
        offset += _PACKET.size
        if kind < 0:
            raise DataError(f"{path}: expected packets as they are, got a compressed one; save it uncompressed")
        if length < 0 or number < 0 or offset + length * number > len(content):
            raise DataError(
                f"{path}: a packet of {number} events of {length} bytes runs over the end; the file is truncated"
            )
        if kind == _POLARITY:
            if length != _EVENT_BYTES:
                raise DataError(f"{path}: expected polarity events of {_EVENT_BYTES} bytes, got {length}")
            words = np.frombuffer(content, dtype="<u4", count=2 * number, offset=offset).astype(np.int64).reshape(-1, 2)
            words = words[(words[:, 0] & 1) == 1]  # the others were marked invalid
            parts.append(np.stack([words[:, 0], words[:, 1] + (overflow << 31)], axis=1))
        offset += length * number  # frames, inertia and triggers are passed over
    words = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)
    data = words[:, 0]
    return _stream(path, data >> 17, (data >> 2) & 0x7FFF, words[:, 1], (data >> 1) & 1, size)


def _aedat4(path: str | os.PathLike[str], size: tuple[int, int]) -> EventStream:
    try:
        import aedat
    except ImportError as error:
        raise MissingExtraError("aedat", "events") from error
    try:
        packets = [packet["events"] for packet in aedat.Decoder(str(path)) if "events" in packet]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the decoder's own errors have no common base, and its panics are no Exception
        raise DataError(f"{path}: expected an AEDAT 4 file, got: {error}") from error
    x, y, t, on = (
        np.concatenate([packet[name] for packet in packets]) if packets else np.zeros(0)
        for name in ("x", "y", "t", "on")
    )
    return _stream(path, x, y, t, on, size)


def _stream(
    path: str | os.PathLike[str], x: object, y: object, t: object, p: object, size: tuple[int, int]
) -> EventStream:
    try:
        return EventStream.of(x, y, t, p, size)
    except DataError as error:
        raise DataError(f"{path}: {error}; it is damaged, or not of a sensor of {size[1]}x{size[0]} pixels") from error
