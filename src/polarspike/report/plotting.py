"""How plots are drawn here: SVG files, the same file from the same numbers, pages in one style."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polarspike.common.files import replacing
from polarspike.errors import MissingExtraError, RunError

#: One color for each network, in every figure.
COLORS = {"ann": "#444444", "qann": "#e08214", "snn": "#2166ac", "control": "#999999", "through_time": "#1b7837"}
#: One mark for each line, in turn.
MARKS = "os^vD*Phx+<>p"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 9,
    "legend.frameon": False,
}


def pyplot() -> Any:
    """Matplotlib's plotting module, without a window.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: it is, and does not work.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    except Exception as error:  # of its own settings: a backend or a style that it does not know
        raise RunError(f"matplotlib cannot be used: {type(error).__name__}: {error}; mend its settings") from error
    mpl.rcParams["svg.hashsalt"] = "polarspike"  # the same figure is the same file
    from matplotlib import pyplot as plt

    return plt


@contextlib.contextmanager
def drawing(
    target: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, style: Mapping[str, Any] = _STYLE
) -> Iterator[list[Any]]:
    """The axes of a new figure, row by row; it is written when the block ends well.

    Args:
        target: the SVG file.
        size: in inches.
        rows: of axes.
        columns: of axes.
        style: settings of matplotlib; those of pages if not given.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot()
    with plt.rc_context(dict(style)):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        try:
            yield list(axes.flat)
            with replacing(target) as partial:
                figure.savefig(partial, format="svg", metadata={"Date": None})
        finally:
            plt.close(figure)
