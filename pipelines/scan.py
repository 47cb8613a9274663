"""``reid scan``: what lies below a root, and what is wrong with it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import tyro
from tyro.conf import Positional

from pipelines.results.bar import Bar
from pipelines.results.report import aligned
from reid_core.data.check import query_problems, subset_table, unreadable
from reid_core.data.datasets import Found, scan
from reid_core.data.decode import ImageStore


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """Show what a data set holds and list what is wrong with it."""

    root: Positional[str]
    """The folder of images, a path or a URI; or a manifest, .csv or .parquet."""
    layout: str = "auto"
    """The layout: auto, manifest, msmt17, dukemtmc, personx, market1501 or folder; auto finds out."""
    strict: bool = False
    """Fail (exit code 1) when an image cannot be read."""
    decode: bool = True
    """Read and decode every image; without it only the names are looked at."""


def run(job: ScanJob) -> int:
    """Print the report; 1 if a query has no match in the gallery or, if strict, an image is broken.

    Raises:
        UsageError: the root or the layout does not exist.
        ValueError: the root holds no images, or not the layout.
    """
    found = scan(job.root, job.layout)
    _say([f"{found.root}: layout {found.layout}, fingerprint {found.fingerprint}", ""])
    _say(_table(found))
    _say(f"note: {note}" for note in found.notes)
    alone = query_problems(found.images)
    broken = _broken(found) if job.decode else []
    _say(_queries(alone))
    _say(f"unreadable: {path}: {reason}" for path, reason in broken)
    wrong = len(alone) > 0 or (job.strict and len(broken) > 0)
    _say(["", f"{len(broken)} unreadable, {len(alone)} queries without a match"])
    return int(wrong)


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid scan``."""
    return run(tyro.cli(ScanJob, args=argv, prog="reid scan"))


def _table(found: Found) -> list[str]:
    """The opening table; unknown is '-'."""
    head = ("subset", "ids", "images", "cameras", "published ids", "published images")
    return aligned([head, *(list(map(_cell, row)) for row in subset_table(found))])


def _cell(value: str | int | None) -> str:
    return "-" if value is None else str(value)


def _queries(alone: pa.Table) -> list[str]:
    return [
        f"query without a gallery image of its id from another camera: {row['path']} "
        f"(pid {row['pid']}, camera {row['camid']})"
        for row in alone.to_pylist()
    ]


def _broken(found: Found) -> list[tuple[str, str]]:
    paths = found.images["path"].to_pylist()
    store = ImageStore(found.root, cache=None)
    with Bar("reading images", len(paths)) as bar:
        return unreadable(paths, store.read, progress=bar.over)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)  # noqa: T201
