"""One swept setting against what came out: ours with the spread over seeds, the papers' beside it. P points."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

TITLES = {"mAP": "mAP (%)", "label_free": "label-free score"}


def sweep_figure(
    setting: str,
    points: Sequence[Any],
    ours: Mapping[str, Sequence[tuple[float, float] | None]],
    theirs: Mapping[str, Sequence[float | None]],
) -> Figure:
    """A panel a measure over the values of a setting.

    Args:
        setting: its name.
        points: P values, rising where they are numbers; words stand in the order given.
        ours: for each of ``TITLES``, P pairs of mean and standard deviation, None where there is none.
        theirs: for each of the papers' data sets, P mAP in per cent, None likewise.
    """
    names = [n for n in TITLES if any(ours.get(n, ())) or (n == "mAP" and theirs)]
    figure = Figure(figsize=(5 * max(1, len(names)), 3.6), layout="constrained")
    words = not all(isinstance(point, int | float) for point in points)
    place = list(range(len(points))) if words else list(points)
    for panel, name in zip(
        figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False
    ):
        kept = [(x, *pair) for x, pair in zip(place, ours.get(name, ()), strict=False) if pair]
        if kept:
            x, mean, spread = zip(*kept, strict=True)
            panel.errorbar(x, mean, spread, marker="o", capsize=3, label="ours")
        for data, values in theirs.items() if name == "mAP" else ():
            shown = [(x, y) for x, y in zip(place, values, strict=True) if y is not None]
            panel.plot(*zip(*shown, strict=True), "--", marker=".", label=f"paper, {data}")
        panel.set_title(TITLES[name], fontsize="medium")
        panel.set_xlabel(setting)
        if words:
            panel.set_xticks(place, [str(point) for point in points], fontsize="small")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return figure
