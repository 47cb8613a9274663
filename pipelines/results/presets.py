"""The presets of the methods, and what was published for them: as text for ``--list``, as Markdown for docs/presets.md.

``python -m pipelines.results.presets > docs/presets.md`` writes the second anew.
"""

import sys

from reid_core import method as contract
from reid_core.method import Preset

FIGURES = {"mAP": "mAP", "rank1": "R1", "rank5": "R5", "rank10": "R10"}  # and their titles
HEAD = """\
# Presets

Every preset of every method, with the figures that were published for it (mAP and CMC in per cent; - where there is
none). `reid train METHOD --preset NAME` takes one, `reid train METHOD --list` prints those of a method. No figure on
this page was measured with this code; those that were are in [results.md](results.md). Why a setting is as it is stands
in [methods.md](methods.md).

This page is written by `python -m pipelines.results.presets`; a test compares it with the code.
"""


def preset_lines(method: str) -> list[str]:
    """The table of ``reid train METHOD --list``."""
    presets = contract.load(method).PRESETS
    width = max(map(len, presets))
    head = "".join(f"{title:>6}" for title in FIGURES.values())
    lines = [f"{'preset':<{width}}{head}  published for"]
    for name, preset in presets.items():
        cells = "".join(f"{figure:>6}" for figure in _figures(preset))
        lines.append(f"{name:<{width}}{cells}  {preset.about}")
    return lines


def preset_page() -> str:
    """The whole of docs/presets.md."""
    parts = [HEAD]
    for method in contract.names():
        rows = [
            "| " + " | ".join([f"`{name}`", *_figures(preset), preset.about]) + " |"
            for name, preset in contract.load(method).PRESETS.items()
        ]
        titles = " | ".join(FIGURES.values())
        table = [f"| preset | {titles} | published for |", "|---|--:|--:|--:|--:|---|", *rows]
        parts.append("\n".join([f"## {method}", "", *table, ""]))
    return "\n".join(parts)


def _figures(preset: Preset) -> list[str]:
    figures = map(preset.published.get, FIGURES)
    return ["-" if figure is None else f"{figure:.1f}" for figure in figures]


if __name__ == "__main__":
    sys.stdout.write(preset_page())
