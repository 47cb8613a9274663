"""The result of a training sweep: the mean over seeds, as the paper's table and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from pipelines.results.report import COLUMNS, aligned
from pipelines.sweeps.spaces import Column, Point
from reid_core.visualisation.png import png
from reid_core.visualisation.sweep import sweep_figure

MEASURES = ("label_free", *COLUMNS)  # fractions of 1
LABEL_FREE = "* best by the label-free score"
ON_TEST = "* best by {} of the test set, which chose it: no fair figure"


@dataclass(frozen=True)
class Entry:
    """All trials of one point, which differ in their seeds."""

    point: Point
    trials: int
    rounds: int  # of the trial that was stopped first
    measured: dict[str, tuple[float, float]]  # mean and sample standard deviation (0 of one trial)


def entries(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Entry]:
    """One entry a point, in the order in which points first occur.

    Args:
        rows: a trial each: ``keys``, ``round``, and of ``MEASURES`` those that were taken.
        keys: the fields of the space.
    """
    groups: dict[Point, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for point, group in groups.items():
        shortest = min(row["round"] for row in group)
        found.append(Entry(point, len(group), shortest, _measured(group)))
    return found


def _measured(group: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    measured = {}
    for name in MEASURES:
        values = [row[name] for row in group if row.get(name) is not None]
        if len(values) == len(group):  # else the mean of other trials than its neighbours'
            measured[name] = (mean(values), stdev(values) if len(values) > 1 else 0.0)
    return measured


def best(found: Sequence[Entry], metric: str) -> int | None:
    """The entry with the largest mean among those that were trained longest; the first of equal ones."""
    longest = max((entry.rounds for entry in found), default=0)
    able = [i for i, e in enumerate(found) if e.rounds == longest and metric in e.measured]
    return max(able, key=lambda i: found[i].measured[metric][0], default=None)


def table(
    found: Sequence[Entry], keys: Sequence[str], metric: str, papers: Sequence[Column]
) -> list[str]:
    """The lines of the table, ours beside theirs; what is swept comes first."""
    star = best(found, metric)
    known = set().union(*(entry.measured for entry in found))
    taken = [name for name in MEASURES if name in known]
    several = any(entry.trials > 1 for entry in found)
    theirs = [(c, key) for c in papers for key in ("mAP", "rank1") if _printed(c, key)]
    head = [*keys, "seeds", "rounds", *(COLUMNS.get(name, "label-free") for name in taken)]
    cells = [[*head, *(f"paper {c.data} {COLUMNS[key]}" for c, key in theirs)]]
    for number, entry in enumerate(found):
        line = [*map(_word, entry.point), str(entry.trials), str(entry.rounds)]
        line[0] = ("* " if number == star else "") + line[0]
        line += [_ours(name, entry.measured.get(name), several) for name in taken]
        figures = (c.published.get(entry.point, {}).get(key) for c, key in theirs)
        cells.append([*line, *("-" if x is None else f"{x:.1f}" for x in figures)])
    notes = [LABEL_FREE if metric == "label_free" else ON_TEST.format(COLUMNS[metric])]
    notes += ["mean ± standard deviation over the seeds"] if several else []
    for paper in papers:
        others = f"the presets that differ from it in {', '.join(keys)}"
        notes.append(f"paper {paper.data}: {paper.about}; and {others}")
    return [*aligned(cells), "", *notes]


def picture(found: Sequence[Entry], keys: Sequence[str], papers: Sequence[Column]) -> bytes:
    """A PNG of the table: mAP and label-free score over the points, which stand in rising order if they are numbers."""
    varies = [i for i in range(len(keys)) if len({e.point[i] for e in found}) > 1] or [0]
    single = len(varies) == 1 and all(type(e.point[varies[0]]) in (int, float) for e in found)
    rows = sorted(found, key=lambda e: e.point[varies[0]]) if single else list(found)
    points = [
        e.point[varies[0]] if single else "\n".join(_word(e.point[i]) for i in varies) for e in rows
    ]
    ours: dict[str, list[tuple[float, float] | None]] = {
        "mAP": [_percent(e.measured.get("mAP")) for e in rows],
        "label_free": [e.measured.get("label_free") for e in rows],
    }
    theirs = {c.data: [c.published.get(e.point, {}).get("mAP") for e in rows] for c in papers}
    return png(sweep_figure(", ".join(keys[i] for i in varies), points, ours, theirs))


def _printed(column: Column, key: str) -> bool:
    return any(key in figures for figures in column.published.values())


def _percent(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if pair is None else (100 * pair[0], 100 * pair[1])


def _ours(name: str, pair: tuple[float, float] | None, several: bool) -> str:
    if pair is None:
        return "-"
    scale, digits = (1, 3) if name == "label_free" else (100, 1)
    spread = f" ± {scale * pair[1]:.{digits}f}" if several else ""
    return f"{scale * pair[0]:.{digits}f}{spread}"


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
