"""MSMT17 in its four layouts: V1 and V2 with lists, and two with the folders of Market-1501.

Persons are numbered from 0 in the files and from 1 in the table, where 0 means a distractor.
"""

import re

from reid_core.data.datasets import market_like
from reid_core.data.datasets.listing import Content, Listing, some, table, under

PUBLISHED = {"train": (1041, 32621), "query": (3060, 11659), "gallery": (3060, 82161)}
LISTS = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
NEEDS = (
    f"train/ and test/ (V1) or mask_train_v2/ and mask_test_v2/ (V2) with {', '.join(LISTS)}, "
    "or the folders of Market-1501"
)
_FROM_ONE = "person n of the files is pid n + 1; train and test number their persons separately"
_MASKED = {"train": "mask_train_v2", "test": "mask_test_v2"}
_IMAGE = re.compile(r"(?:(.*)/)?(?:train|test|mask_train_v2|mask_test_v2)/\d+/\d+_\d+_\d+_[^/]*")
_LINE = re.compile(r"(\S*?\d+_\d+_(\d+)_\S*)\s+(\d+)\s*")  # path, with the camera in it; person


def bases(listing: Listing) -> list[str]:
    """The folders, relative to the root, that hold V1 or V2 with lists."""
    return sorted({match[1] or "" for match in map(_IMAGE.fullmatch, listing.images()) if match})


def read(listing: Listing, base: str) -> Content:
    """Read the set in the folder ``base``."""
    if base in bases(listing):
        return _read_lists(listing, base)
    camstyle = listing.images(under(base, "bounding_box_train_camstyle"))
    form = "ECN's form" if camstyle else "Market-1501's form"
    name = listing.name(base)
    version = next((v for v in ("V1", "V2") if v in name.upper()), "unknown")
    note = f"MSMT17 in {form}, version by the folder's name {name}: {version}"
    rows = market_like.rows(listing, base, from_zero=True)
    return Content(rows=rows, notes=(note, _FROM_ONE), published=PUBLISHED)


def _read_lists(listing: Listing, base: str) -> Content:
    missing = [name for name in LISTS if under(base, name) not in listing.files]
    if missing:
        raise ValueError(
            f"{listing.where(base)}: {', '.join(missing)} missing; MSMT17 cannot be read "
            "without its lists, which come with the images"
        )
    masked = bool(listing.images(under(base, _MASKED["train"])))
    columns = [row for name in LISTS for row in _read_list(listing, base, name, masked)]
    absent = [row[0] for row in columns if row[0] not in listing.files]
    if absent:
        raise ValueError(
            f"{listing.root}: images that the lists name are not there: {some(absent)}; "
            "unpack the set again"
        )
    version = "V2 (faces masked)" if masked else "V1"
    notes = (
        f"MSMT17 {version} with lists; train is list_train + list_val, as SpCL and its successors do",
        _FROM_ONE,
    )
    return Content(
        rows=table(columns),
        notes=notes,
        published=PUBLISHED,
        sources=tuple(under(base, name) for name in LISTS),
    )


def _read_list(listing: Listing, base: str, name: str, masked: bool) -> list[tuple]:
    split = LISTS[name]
    folder = "train" if split == "train" else "test"
    folder = under(base, _MASKED[folder] if masked else folder)
    rows = []
    for number, line in enumerate(listing.read(under(base, name)).decode().splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise ValueError(
                f"{listing.where(under(base, name))}, line {number}: {line!r} is not "
                "'0000/0000_000_01_..._0.jpg 0' (path and person)"
            )
        rows.append((f"{folder}/{match[1]}", split, int(match[3]) + 1, int(match[2]), None))
    return rows
