"""``reid labels diff A B``: births, deaths, merges and splits of clusters between two LABELS tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from tyro.conf import Positional

from reid_core.errors import UsageError
from reid_core.labelling.history import Changes, compare
from reid_core.labels import Labels
from reid_core.storage import exists, open_folder
from reid_core.tables import write_table

SHOWN = 5  # examples of merges and of splits


@dataclass(frozen=True, kw_only=True)
class LabelsJob:
    """Tell what became of the clusters of one label table in another: reid labels diff A B."""

    action: Positional[Literal["diff"]]
    """What to do with the tables: compare them."""
    before: Positional[str]
    """The earlier LABELS table, a path or a URI."""
    after: Positional[str]
    """The later LABELS table, of the same images or of some of them."""
    level: int = 0
    """The level of the labels, 0 is the finest."""
    out: str = ""
    """A table to write: the later one with stable numbers, those of the earlier one where a cluster was kept."""


def run(job: LabelsJob) -> Changes:
    """Print what changed, write the renumbered table if asked, and return the changes.

    Raises:
        UsageError: a file or the level is not there.
        ValueError: a file is not a LABELS table.
    """
    before, after = _read(job.before), _read(job.after)
    labels = Labels.from_table(after, job.after)
    changes = compare(Labels.from_table(before, job.before), labels, job.level)
    for line in _report(changes):
        print(line)  # noqa: T201
    if job.out:
        write_table(_renumbered(after, labels.image_id, changes.label, job.level), job.out)
    return changes


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid labels``."""
    run(tyro.cli(LabelsJob, args=argv, prog="reid labels"))
    return 0


def _read(path: str) -> pa.Table:
    """All columns of a Parquet file."""
    if not exists(path):
        raise UsageError(f"{path}: no such file; give a LABELS table of `reid cluster`")
    filesystem, inner = open_folder(path)
    try:
        return pq.read_table(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no readable Parquet table ({error})") from error


def _renumbered(table: pa.Table, image_id: np.ndarray, stable: np.ndarray, level: int) -> pa.Table:
    """The table with the ``stable`` labels of ``image_id`` (increasing) in the rows of one level."""
    where = np.searchsorted(image_id, table.column("image_id").to_numpy())
    chosen = table.column("level").to_numpy() == level
    label = np.where(chosen, stable[where], table.column("label").to_numpy())
    place = table.schema.get_field_index("label")
    return table.set_column(place, table.schema.field(place), pa.array(label))


def _report(changes: Changes) -> list[str]:
    counts = {
        "kept": len(changes.kept),
        "births": len(changes.births),
        "deaths": len(changes.deaths),
        "merges": len(changes.merges),
        "splits": len(changes.splits),
        "images in both": changes.common,
        "images only before": changes.only_before,
        "images only after": changes.only_after,
    }
    lines = [f"{name:<20}{count:>10}" for name, count in counts.items()]
    for about, groups in (("merged into", changes.merges), ("split from", changes.splits)):
        largest = sorted(groups.items(), key=lambda group: -len(group[1]))[:SHOWN]
        lines += [f"{' + '.join(map(str, parts))} {about} {name}" for name, parts in largest]
    return lines
