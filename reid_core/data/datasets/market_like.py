"""Three folders of images named ``PID_cCAMERA...``: the form of Market-1501 that other sets took over."""

import re

import pyarrow as pa

from reid_core.data.datasets.listing import Listing, some, table, under

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
NEEDS = (
    f"the folders {', '.join(FOLDERS)} with images named PID_cCAMERA..., as 0002_c1s1_000451_03.jpg"
)
_NAME = re.compile(r"(-?\d+)_c(\d+)")
_FOLDER = re.compile(r"(?:(.*)/)?bounding_box_(?:train|test)/")


def bases(listing: Listing) -> list[str]:
    """The folders, relative to the root, in which ``bounding_box_train`` or ``_test`` lies."""
    matches = map(_FOLDER.match, listing.images())
    return sorted({match[1] or "" for match in matches if match})


def names(listing: Listing, base: str) -> list[str]:
    """The file names of the training images; what tells the sets of this form apart."""
    return [path.rpartition("/")[2] for path in listing.images(under(base, "bounding_box_train"))]


def cameras(names: list[str]) -> set[int]:
    """The cameras of all names that carry one."""
    return {int(match[2]) for match in map(_NAME.match, names) if match}


def rows(listing: Listing, base: str, *, from_zero: bool = False) -> pa.Table:
    """The ROWS of a set; ids and cameras as in the names, junk (-1) included.

    Args:
        listing: the files.
        base: folder of the set, relative to the root.
        from_zero: the first person is 0 in the names, and becomes 1: 0 means a distractor.

    Raises:
        ValueError: a folder is missing or empty, or an image is not named in this form.
    """
    found = {folder: listing.images(under(base, folder)) for folder in FOLDERS}
    missing = [folder for folder, paths in found.items() if not paths]
    if missing:
        raise ValueError(
            f"{listing.where(base)}: no images in {', '.join(missing)}; complete the set, "
            "or use layout 'folder' or 'manifest'"
        )
    triples = [
        (path, FOLDERS[folder], _NAME.match(path.rpartition("/")[2]))
        for folder, paths in found.items()
        for path in paths
    ]
    unnamed = [path for path, _, match in triples if not match]
    if unnamed:
        raise ValueError(
            f"{listing.root}: images not named PID_cCAMERA...: {some(unnamed)}; move them away"
        )
    return table(
        (path, split, _pid(match[1], from_zero), int(match[2]), None)
        for path, split, match in triples
        if match
    )


def _pid(text: str, from_zero: bool) -> int:
    pid = int(text)
    return pid + 1 if from_zero and pid >= 0 else pid
