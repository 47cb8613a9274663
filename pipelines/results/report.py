"""Results as lines of text: per cent with one decimal."""

from collections.abc import Sequence
from typing import Any

CHOICE = {
    "first": "before training",
    "last": "last",
    "best_label_free": "best by label-free score",
    "best_on_test": "best on test (chosen on it)",
}
COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "R1", "rank5": "R5", "rank10": "R10"}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, columns flush right."""
    columns = zip(*rows, strict=True)
    wide = [max(map(len, column)) for column in columns]
    return [" | ".join(map(str.rjust, row, wide)) for row in rows]


def result_table(result: dict[str, Any], name: str) -> list[str]:
    """One line an evaluation of ``result.json``."""
    head = "".join(f"{short:>7}" for short in COLUMNS.values())
    lines = [f"{name:<28}{'round':>6}{head}"]
    for key, row in result.items():
        number = "-" if row["round"] is None else row["round"]
        cells = "".join(f"{_percent(row[column]):>7}" for column in COLUMNS)
        lines.append(f"{CHOICE[key]:<28}{number:>6}{cells}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
