"""A figure as the content of a PNG file."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


def png(figure: Figure) -> bytes:
    """Draw the figure; no window is opened."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()
