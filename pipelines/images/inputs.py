"""The images of a run: scanned, looked at once, and sorted into target, source and test."""

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from reid_core.data.datasets import Found, scan
from reid_core.data.decode import ImageStore
from reid_core.errors import UsageError
from reid_core.tables import SOURCE_ID

Look = Callable[[ImageStore, list[str]], list[tuple[str, str]]]
"""Reads and decodes images; paths and reasons of those that cannot be."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was scanned, by ``data`` and ``source``; nothing has been opened yet."""

    found: dict[str, Found]
    cache: str

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the files of each."""
        return {name: found.fingerprint for name, found in self.found.items()}


@dataclass(frozen=True, kw_only=True)
class Images:
    """IMAGES sorted by id and their stores, by ``target``, ``source`` and ``test``; absent where there are none."""

    tables: dict[str, pa.Table]
    stores: dict[str, ImageStore]
    left_out: list[str]  # paths that could not be read


def default_cache() -> str:
    """The folder on each node's local disk that keeps encoded images: one a user."""
    return str(Path(tempfile.gettempdir()) / f"reid-images-{os.getuid()}")


def open_store(root: str, fingerprint: str, cache: str) -> ImageStore:
    """A store whose cache belongs to this state of the data; ``cache`` '' caches nothing."""
    return ImageStore(root, str(Path(cache) / fingerprint[:16]) if cache else None)


def scan_inputs(data: str, source: str, layout: str, cache: str) -> Inputs:
    """Find the target images and, where given, a labelled source; needs no Ray.

    Raises:
        UsageError: a root is missing or its layout is unknown.
        ValueError: there are no training images, or the source has images without ids.
    """
    if not data:
        raise UsageError("--data is missing: give the root of the images, a path or URI")
    found = {"data": scan(data, layout)}
    if not len(_of(found["data"].images, "train")):
        raise ValueError(f"{data}: no training images; `reid scan {data}` tells what is there")
    if source:
        found["source"] = scan(source)
        train = _of(found["source"].images, "train")
        if not len(train) or train.column("pid").null_count:
            raise ValueError(f"{source}: a source needs training images that all have ids")
    return Inputs(found=found, cache=cache)


def look_at(inputs: Inputs, look: Look) -> Images:
    """Decode every image once and leave out those that cannot be read, which are logged.

    Raises:
        ValueError: none of the training images can be read.
    """
    data = inputs.found["data"]
    store = open_store(data.root, data.fingerprint, inputs.cache)
    images, left_out = readable(data.images, store, look)
    tables, stores = {"target": _of(images, "train")}, {"target": store, "test": store}
    test = _of(images, "query", "gallery")
    if is_evaluated(images):
        tables["test"] = test
    elif len(test):
        logger.warning("%s: no query has an id, or no gallery; nothing is evaluated", data.root)
    if "source" in inputs.found:
        source = inputs.found["source"]
        stores["source"] = open_store(source.root, source.fingerprint, inputs.cache)
        train, bad = readable(_of(source.images, "train"), stores["source"], look)
        left_out += bad
        shifted = pa.array(train.column("image_id").to_numpy() + SOURCE_ID)
        tables["source"] = train.set_column(0, train.schema.field("image_id"), shifted)
    for name in ("target", "source"):
        if name in tables and not len(tables[name]):
            raise ValueError(
                f"none of the {name}'s training images can be read; `reid scan` lists why"
            )
    return Images(tables=tables, stores=stores, left_out=left_out)


def is_evaluated(images: pa.Table) -> bool:
    """Whether these IMAGES have a gallery and a query with an id, without which nothing is evaluated."""
    query = _of(images, "query")
    return len(_of(images, "gallery")) > 0 and query.column("pid").null_count < len(query)


def _of(images: pa.Table, *splits: str) -> pa.Table:
    return images.filter(pc.field("split").isin(splits))


def readable(images: pa.Table, store: ImageStore, look: Look) -> tuple[pa.Table, list[str]]:
    """The IMAGES that can be read, sorted by id, and the paths of the others."""
    logger.info("reading %d images of %s", len(images), store.root)
    bad = look(store, images.column("path").to_pylist())
    for path, reason in sorted(bad):
        logger.warning("left out %s: %s", path, reason)
    unread = pa.array([path for path, _ in bad], pa.string())
    good = images.filter(~pc.field("path").isin(unread)).sort_by("image_id")
    return good, sorted(unread.to_pylist())
