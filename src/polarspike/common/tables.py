"""Plain text of a fixed width: aligned tables, and lines that are folded."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

_GAP = 2
_LEAST_NAME = 12


def aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of a table: the first column to the left, and shortened where the others leave no room, the rest to the right.

    Args:
        rows: cells, the same number in each row.
        width: of a line at most, as long as the other columns leave twelve characters for the first.

    >>> aligned([["site", "dB"], ["features.block1.relu", "9.5"]], 20)
    ['site              dB', 'f.block1.relu    9.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(_LEAST_NAME, width - sum(_GAP + other for other in widths[1:])))
    return [
        (" " * _GAP)
        .join(
            cell.rjust(room) if index else shortened(cell, room).ljust(room)
            for index, (cell, room) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in rows
    ]


def shortened(name: str, width: int) -> str:
    """A dotted name with its parts abbreviated from the left until it fits: to a letter and their numbers, which differ.

    The last part stays whole; where that is too long, its end.

    >>> shortened("encoder.layers.encoder_layer_0.self_attention.key", 25)
    'e.l.e0.self_attention.key'
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        parts[index] = part[:1] + "_".join(re.findall(r"\d+", part[1:]))
    short = ".".join(parts)
    return short if len(short) <= width else f"..{short[len(short) - width + 2 :]}"


def fitted(text: str, width: int) -> list[str]:
    """The text in lines of at most ``width``, the later ones indented; a word that is longer stays whole."""
    return textwrap.wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
