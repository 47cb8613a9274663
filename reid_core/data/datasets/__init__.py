"""Data sets: one file a layout, and ``scan``, which tells them apart and numbers the images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reid_core.data.datasets import (
    dukemtmc,
    folder,
    manifest,
    market1501,
    market_like,
    msmt17,
    personx,
)
from reid_core.data.datasets.listing import SUFFIXES, Content, Listing, list_files
from reid_core.errors import UsageError
from reid_core.tables import IMAGES

LAYOUTS: dict[str, Callable[[Listing, str], Content]] = {  # in the order in which they are tried
    "manifest": manifest.read,
    "msmt17": msmt17.read,
    "dukemtmc": dukemtmc.read,
    "personx": personx.read,
    "market1501": market1501.read,
    "folder": folder.read,
}
_NEEDS = {
    "manifest": manifest.NEEDS,
    "msmt17": msmt17.NEEDS,
    "dukemtmc": dukemtmc.NEEDS,
    "personx": personx.NEEDS,
    "market1501": market1501.NEEDS,
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What ``scan`` finds below a root."""

    root: str
    """Absolute path or URI of the folder that the paths of ``images`` are relative to."""
    layout: str
    images: pa.Table
    """IMAGES in the order of ``image_id``, which is the rank of the path among all images."""
    notes: tuple[str, ...]
    """Remarks for the reader: version, what was left out."""
    published: Mapping[str, tuple[int, int]]
    """Split to published (ids, images); empty where nothing was published."""
    fingerprint: str
    """32 hex digits over paths, sizes and times of change of the images and the lists that name them."""


def scan(root: str, layout: str = "auto") -> Found:
    """Find the images below ``root``, a path or URI, or in a manifest; no image is opened.

    Raises:
        UsageError: ``root`` is not there, or there is no such layout.
        ValueError: there are no images, the layout does not fit, or its files contradict each other.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UsageError(f"no layout {layout!r}; there are auto, {', '.join(LAYOUTS)}")
    parent, name = _split_manifest(root)
    if name and layout not in ("auto", "manifest"):
        raise UsageError(f"{root}: a manifest is no root for layout {layout!r}; use layout auto")
    listing = list_files(parent)
    if name and name not in listing.files:
        raise UsageError(f"{root}: no such file; a manifest is {_NEEDS['manifest']}")
    if not (listing.images() or name or manifest.files(listing)):
        raise ValueError(f"{listing.root}: no images ({' '.join(SUFFIXES)}) below this folder")
    kind, base = _choose(listing, layout, name)
    content = LAYOUTS[kind](listing, base)
    images, junk = _number(content.rows)
    if not len(images):
        raise ValueError(f"{listing.where(base)}: names no images; nothing to do")
    return Found(
        root=listing.root,
        layout=kind,
        images=images,
        notes=content.notes + junk,
        published=content.published,
        fingerprint=listing.fingerprint([*images["path"].to_pylist(), *content.sources]),
    )


def _split_manifest(root: str) -> tuple[str, str | None]:
    """Folder and file name of a root that is a manifest; any other root as it is, and None."""
    if not root.lower().endswith(manifest.SUFFIXES):
        return root, None
    parent, _, name = root.rpartition("/")
    return parent or ("/" if root.startswith("/") else "."), name


def _choose(listing: Listing, layout: str, name: str | None) -> tuple[str, str]:
    """The one (layout, place) to read: place is a folder, or the file of a manifest."""
    places = _places(listing, name)
    if layout == "auto":
        chosen = places or [("folder", "")]
    elif layout == "folder":
        chosen = [("folder", "")]
    else:
        chosen = [place for place in places if place[0] == layout]
        if not chosen and layout != "manifest":  # the user knows better than the names
            chosen = [(layout, base) for base in market_like.bases(listing)]
    if not chosen:
        raise ValueError(f"{listing.root}: not layout {layout!r}; it needs {_NEEDS[layout]}")
    if len(chosen) > 1:
        several = ", ".join(f"{base or '.'} ({kind})" for kind, base in chosen)
        raise ValueError(f"{listing.root}: several sets: {several}; give the folder or file of one")
    return chosen[0]


def _places(listing: Listing, name: str | None) -> list[tuple[str, str]]:
    """Every (layout, place) that shows by its form; a manifest goes before all others."""
    manifests = [name] if name else manifest.files(listing)
    if manifests:
        return [("manifest", file) for file in manifests]
    lists = [("msmt17", base) for base in msmt17.bases(listing)]
    return lists + [(_kind(listing, base), base) for base in market_like.bases(listing)]


def _kind(listing: Listing, base: str) -> str:
    """Which of the sets in Market-1501's form lies in ``base``."""
    names, folder = market_like.names(listing, base), listing.name(base).lower()
    if "msmt17" in folder:
        return "msmt17"
    if dukemtmc.owns(names):
        return "dukemtmc"
    if "personx" in folder or personx.owns(names):
        return "personx"
    return "market1501"


def _number(rows: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """IMAGES without the junk of the training split, and what to say about junk."""
    junk, train = pc.field("pid") == -1, pc.field("split") == "train"
    dropped, kept = len(rows.filter(junk & train)), len(rows.filter(junk & ~train))
    notes = []
    if dropped:
        notes.append(f"{dropped} junk images (pid -1) of train are left out")
    if kept:
        notes.append(f"{kept} junk images (pid -1) of query and gallery; the evaluation drops them")
    rows = rows.filter(~(junk & train) | pc.field("pid").is_null())
    rows = rows.sort_by("path")
    image_id = pa.array(np.arange(len(rows)))
    return pa.table([image_id, *rows.columns], schema=IMAGES), tuple(notes)
