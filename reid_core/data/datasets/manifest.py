"""Own data without code: a CSV or Parquet file with one row an image.

Columns: ``path`` relative to the manifest's folder; optional ``pid`` (1 or more; 0 distractor, -1 junk), ``camid``
(0 or more), ``split`` (train, query, gallery; train where empty), ``tracklet``. An empty cell is unknown.
No path leads out of that folder, nor a symbolic link on it, unless the environment says ``REID_LINKS=follow``.
"""

import os
import posixpath
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from reid_core.data.datasets.listing import ROWS, Content, Listing, some
from reid_core.tables import SPLITS

NAMES = ("manifest.csv", "manifest.parquet")
SUFFIXES = (".csv", ".parquet")
NEEDS = "a .csv or .parquet file with a column path, or a folder with " + " or ".join(NAMES)


def files(listing: Listing) -> list[str]:
    """The manifests that lie in the root itself."""
    return [name for name in NAMES if name in listing.files]


def read(listing: Listing, name: str) -> Content:
    """Read the manifest ``name``, relative to the root.

    Raises:
        ValueError: the file is no such table, or a path, split, id or camera in it cannot be right.
    """
    where = listing.where(name)
    table = _open(listing, name, where)
    if "path" not in table.column_names:
        raise ValueError(f"{where}: no column path; it has {', '.join(table.column_names)}")
    ignored = [column for column in table.column_names if column not in ROWS.names]
    rows = _typed(table, where)
    _check_values(rows, where)
    return Content(
        rows=rows.set_column(0, "path", _paths(rows, listing, where)).cast(ROWS),
        notes=(f"columns ignored: {', '.join(ignored)}",) if ignored else (),
        sources=(name,),
    )


def _open(listing: Listing, name: str, where: str) -> pa.Table:
    source = pa.BufferReader(listing.read(name))
    try:
        if name.lower().endswith(".parquet"):
            return pq.read_table(source)
        kinds = pcsv.ConvertOptions(column_types=ROWS, null_values=[""], strings_can_be_null=True)
        return pcsv.read_csv(source, convert_options=kinds)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{where}: no readable table ({error}); see the columns of a manifest"
        ) from error


def _typed(table: pa.Table, where: str) -> pa.Table:
    """The columns of ROWS; an absent one is null, an absent split is train."""
    columns = []
    for field in ROWS:
        absent = field.name not in table.column_names
        column = pa.nulls(len(table), field.type) if absent else table[field.name]
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{where}: column {field.name} is not {field.type} ({error})"
            ) from error
    rows = pa.table(columns, names=ROWS.names)
    split = ROWS.get_field_index("split")
    return rows.set_column(split, "split", pc.fill_null(rows["split"], "train"))


def _paths(rows: pa.Table, listing: Listing, where: str) -> pa.Array:
    """The paths in normal form.

    Raises:
        ValueError: a path is empty, leads out of the folder, occurs twice or is not there.
    """
    written = rows["path"].to_pylist()
    if not all(written):
        raise ValueError(f"{where}: {written.count(None) + written.count('')} rows without a path")
    paths = [posixpath.normpath(path) for path in written]
    outside = [p for p in paths if p.startswith(("/", "../")) or p == ".." or ":/" in p]
    if outside:
        raise ValueError(
            f"{where}: paths that lead out of its folder: {some(outside)}; write them relative to it"
        )
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: images that occur more than once: {some(twice)}; keep one row")
    absent = [path for path in paths if path not in listing.files]
    if absent:
        raise ValueError(f"{where}: images that are not there: {some(absent)}; correct the paths")
    if os.environ.get("REID_LINKS") != "follow" and (linked := _linked_outside(paths, listing)):
        raise ValueError(
            f"{where}: symbolic links lead out of its folder: {some(linked)}; copy what they point to, or set "
            "REID_LINKS=follow if you trust them"
        )
    return pa.array(paths, pa.string())


def _linked_outside(paths: list[str], listing: Listing) -> list[str]:
    """Those that are or go through a symbolic link to a place outside the root."""
    if not isinstance(listing.filesystem, pafs.LocalFileSystem):
        return []
    root = Path(listing.inner).resolve()

    def outside(path: str) -> bool:
        return not (root / path).resolve().is_relative_to(root)

    folders = {folder for folder in map(posixpath.dirname, paths) if outside(folder)}
    return [
        path
        for path in paths
        if posixpath.dirname(path) in folders or ((root / path).is_symlink() and outside(path))
    ]


def _check_values(rows: pa.Table, where: str) -> None:
    wrong = sorted(set(rows["split"].to_pylist()) - set(SPLITS))
    if wrong:
        raise ValueError(f"{where}: unknown split: {some(wrong)}; use {', '.join(SPLITS)}")
    for name, least in (("pid", -1), ("camid", 0)):
        low = rows.filter(pc.field(name) < least)[name].to_pylist()
        if low:
            raise ValueError(
                f"{where}: {name} {low[0]} in {len(low)} rows; must be {least} or more, empty if unknown"
            )
