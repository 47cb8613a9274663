"""How well a run's labels agree with the true ids, round by round, runs side by side (ISE, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, Literal["-", ":"]] = {
    "singletons": "-",
    "clustered": ":",
}  # how outliers count, and the line of it
ABOUT = {"singletons": "outliers as clusters of one", "clustered": "clustered images only"}
SCORES = {
    "fmi": "Fowlkes-Mallows",
    "ari": "ARI",
    "ami": "AMI",
    "v_measure": "V-measure",
    "pairwise_f": "pairwise F",
    "purity": "purity",
}
PANELS: dict[str, dict[str, str]] = {
    "mAP": {"mAP": "-"},
    "rank-1": {"rank1": "-"},
    **{
        title: {f"{name}_{kind}": line for kind, line in KINDS.items()}
        for name, title in SCORES.items()
    },
}
"""Title of a panel to what it shows: names in ``metrics.jsonl`` and their lines."""
COLUMNS = 4


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The rounds that have a value of ``name``, rising, and the values; of two lines of a round the last."""
    found = {line["round"]: line[name] for line in lines if line.get(name) is not None}
    rounds = sorted(found)
    return rounds, [found[number] for number in rounds]


def quality_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A panel a measure over the rounds, a colour a run; mAP and rank-1 where test images have ids.

    Args:
        runs: the lines of ``metrics.jsonl``, by what to call the run.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    height = -(-len(PANELS) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.4 * height + 0.6), layout="constrained")
    panels = figure.subplots(height, COLUMNS, sharex=True).flat
    for panel, (title, measures) in zip(panels, PANELS.items(), strict=True):
        for number, lines in enumerate(runs.values()):
            for name, style in measures.items():
                panel.plot(*curve(lines, name), style, marker=".", color=f"C{number}")
        panel.set_title(title, fontsize="medium")
        panel.grid(alpha=0.3)
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("rounds")
    keys = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(runs)]
    keys += [
        Line2D([], [], color="black", linestyle=line, label=ABOUT[kind])
        for kind, line in KINDS.items()
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=COLUMNS)
    return figure
