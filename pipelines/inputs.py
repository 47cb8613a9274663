"""The images of a run: scanned, looked at once on all CPUs, and sorted into target, source and test."""

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray
from tqdm import tqdm

from pipelines.extraction import DECODE_CPUS
from reid_core.data.check import unreadable
from reid_core.data.datasets import scan
from reid_core.data.decode import ImageStore
from reid_core.errors import UsageError
from reid_core.tables import SOURCE_ID

CHUNK = 256  # images one task looks at
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """IMAGES sorted by id and their stores, by ``target``, ``source`` and ``test``; absent where there are none."""

    tables: dict[str, pa.Table]
    stores: dict[str, ImageStore]
    fingerprints: dict[str, str]
    skipped: list[tuple[str, str]]  # path and reason of images that could not be read


def default_cache() -> str:
    """The folder on each node's local disk that keeps encoded images: one a user."""
    return str(Path(tempfile.gettempdir()) / f"reid-images-{os.getuid()}")


def open_store(root: str, fingerprint: str, cache: str) -> ImageStore:
    """A store whose cache belongs to this state of the data; ``cache`` '' caches nothing."""
    return ImageStore(root, str(Path(cache) / fingerprint[:16]) if cache else None)


def read_inputs(data: str, source: str, layout: str, cache: str) -> Inputs:
    """Scan the target data and, where given, the labelled source; images that cannot be read are left out.

    Raises:
        UsageError: a root does not exist or its layout is unknown.
        ValueError: there are no training images, or the source has images without ids.
    """
    found = scan(data, layout)
    store = open_store(found.root, found.fingerprint, cache)
    images, skipped = readable(found.images, store)
    tables = {"target": images.filter(pc.field("split") == "train")}
    test = images.filter(pc.field("split") != "train")
    if len(test) and not test.column("pid").null_count:
        tables["test"] = test
    stores, fingerprints = {"target": store, "test": store}, {"data": found.fingerprint}
    if not len(tables["target"]):
        raise ValueError(f"{data}: no training images; check the layout with `reid scan {data}`")
    if source:
        labelled = scan(source)
        stores["source"] = open_store(labelled.root, labelled.fingerprint, cache)
        train = labelled.images.filter(pc.field("split") == "train")
        if not len(train) or train.column("pid").null_count:
            raise ValueError(f"{source}: a source needs training images that all have ids")
        tables["source"], bad = readable(train, stores["source"])
        tables["source"] = _shift_ids(tables["source"])
        skipped += bad
        fingerprints["source"] = labelled.fingerprint
    return Inputs(tables=tables, stores=stores, fingerprints=fingerprints, skipped=skipped)


def _shift_ids(images: pa.Table) -> pa.Table:
    shifted = pc.add(images.column("image_id"), pa.scalar(SOURCE_ID, pa.int64()))
    return images.set_column(0, images.schema.field("image_id"), shifted)


def readable(images: pa.Table, store: ImageStore) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Decode every image once, as Ray tasks; this also fills the nodes' caches.

    Returns:
        The IMAGES that can be read, sorted by id, and path and reason of the others.
    """
    paths = images.column("path").to_pylist()
    look = ray.remote(num_cpus=DECODE_CPUS)(_look)
    waiting = [look.remote(store, paths[i : i + CHUNK]) for i in range(0, len(paths), CHUNK)]
    bad: list[tuple[str, str]] = []
    with tqdm(total=len(waiting), desc="look at images", leave=False, disable=None) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=60)
            bad += [row for rows in ray.get(done) for row in rows]
            bar.update(len(done))
    for path, reason in sorted(bad):
        logger.warning("skipped %s: %s", path, reason)
    good = pc.invert(pc.is_in(images.column("path"), pa.array([p for p, _ in bad], pa.string())))
    return images.filter(good).sort_by("image_id"), sorted(bad)


def _look(store: ImageStore, paths: list[str]) -> list[tuple[str, str]]:
    return unreadable(paths, store.read, threads=2)


def require_folder(path: str) -> None:
    """Refuse an empty path of a required flag."""
    if not path:
        raise UsageError("--data is missing: give the root of the images, a path or URI")
