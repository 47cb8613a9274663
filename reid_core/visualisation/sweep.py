"""One swept setting against what came out: ours with the spread over seeds, the papers' beside it. P points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"mAP": "mAP (%)", "label_free": "label-free score"}
WORD_INCHES = 1.1  # of a point that is named by words
LOG_SPAN = 50  # largest over smallest value from which an axis is logarithmic


def sweep_figure(
    setting: str,
    points: Sequence[Any],
    ours: Mapping[str, Sequence[tuple[float, float] | None]],
    theirs: Mapping[str, Sequence[float | None]],
) -> Figure:
    """A panel a measure over the values of a setting.

    Args:
        setting: its name.
        points: P values, rising where they are numbers and joined by lines; words stand in the order given.
        ours: for each of ``TITLES``, P pairs of mean and standard deviation, None where there is none.
        theirs: for each of the papers' data sets, P mAP in per cent, None likewise.
    """
    from matplotlib.figure import Figure

    names = [n for n in TITLES if any(ours.get(n, ())) or (n == "mAP" and theirs)]
    words = not all(isinstance(point, int | float) for point in points)
    place = list(range(len(points))) if words else list(points)
    wide = max(5.0, WORD_INCHES * len(points) * words)
    figure = Figure(figsize=(wide * max(1, len(names)), 3.6), layout="constrained")
    for panel, name in zip(
        figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False
    ):
        kept = [(x, *pair) for x, pair in zip(place, ours.get(name, ()), strict=False) if pair]
        if kept:
            x, mean, spread = zip(*kept, strict=True)
            line = "none" if words else "-"
            panel.errorbar(x, mean, spread, marker="o", linestyle=line, capsize=3, label="ours")
        for data, values in theirs.items() if name == "mAP" else ():
            shown = [(x, y) for x, y in zip(place, values, strict=True) if y is not None]
            line = "none" if words else "--"
            panel.plot(
                *zip(*shown, strict=True), marker="s", linestyle=line, label=f"paper, {data}"
            )
        panel.set_title(TITLES[name], fontsize="medium")
        panel.set_xlabel(setting)
        if words:
            panel.set_xticks(place, [str(point) for point in points], fontsize="small")
        elif 0 < LOG_SPAN * place[0] <= place[-1]:
            panel.set_xscale("log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return figure
