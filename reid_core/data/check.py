"""The data doctor: what a set holds, and what is wrong with it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from reid_core.data.datasets import Found
from reid_core.data.decode import decode
from reid_core.tables import SPLITS

_BLOCK = 1024  # images handed to the threads at a time

_Key = tuple[int | None, int | None]  # pid, camid


class Subset(NamedTuple):
    """One line of the table that opens a report; junk (pid -1) is not counted, None is unknown."""

    subset: str
    ids: int | None
    images: int
    cameras: int | None
    published_ids: int | None
    published_images: int | None


def subset_table(found: Found) -> list[Subset]:
    """One row a split that has images, or for which numbers were published."""
    rows = []
    not_junk = pc.field("pid").is_null() | (pc.field("pid") != -1)
    for split in SPLITS:
        images = found.images.filter((pc.field("split") == split) & not_junk)
        ids, number = found.published.get(split, (None, None))
        if len(images) or number:
            counts = _distinct(images["pid"]), len(images), _distinct(images["camid"])
            rows.append(Subset(split, *counts, ids, number))
    return rows


def query_problems(images: pa.Table) -> pa.Table:
    """The query rows of IMAGES that no gallery image can answer: same id, another or unknown camera.

    Junk (-1) and distractors (0) are no one to look for. Empty where no query has an id.
    """
    query = images.filter(pc.field("split") == "query")
    gallery = images.filter(pc.field("split") == "gallery")
    if query["pid"].null_count == len(query):
        return query.slice(0, 0)
    of_id = Counter(gallery["pid"].to_pylist())
    of_camera = Counter(_keys(gallery))
    alone = [not _answered(key, of_id, of_camera) for key in _keys(query)]
    return query.filter(pa.array(alone, pa.bool_()))


def unreadable(
    paths: Sequence[str],
    read: Callable[[str], bytes],
    *,
    threads: int = 8,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[tuple[str, str]]:
    """The (path, reason) of every image that cannot be read or decoded.

    Args:
        paths: of the images.
        read: gives the content of one path, e.g. ``ImageStore(root).read``; called from many threads.
        threads: that read and decode.
        progress: wraps the iterator over the images, e.g. to show a bar.
    """

    def reason(path: str) -> str | None:
        try:
            decode(read(path))
        except (OSError, ValueError) as error:
            return str(error)
        return None

    def reasons() -> Iterator[str | None]:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(paths), _BLOCK):
                yield from pool.map(reason, paths[start : start + _BLOCK])

    return [(path, why) for path, why in zip(paths, progress(reasons()), strict=True) if why]


def _answered(query: _Key, of_id: Counter[int | None], of_camera: Counter[_Key]) -> bool:
    """Whether more gallery images have the query's id than its id and its camera."""
    pid, camid = query
    if pid is None or pid < 1:
        return False
    return of_id[pid] > (0 if camid is None else of_camera[query])


def _distinct(column: pa.ChunkedArray) -> int | None:
    """How many values occur; None where all are unknown."""
    return len(column.drop_null().unique()) or None


def _keys(images: pa.Table) -> list[_Key]:
    return list(zip(images["pid"].to_pylist(), images["camid"].to_pylist(), strict=True))
