"""A synthetic set in Market-1501's layout, to try everything without any data."""

import io
import json
from itertools import product
from uuid import uuid4

import numpy as np
import pyarrow.fs as pafs

from reid_core.data.datasets.drawing import VERSION, camera, person, photograph
from reid_core.data.datasets.market1501 import MARKER
from reid_core.errors import UsageError
from reid_core.seeding import derive
from reid_core.storage import open_folder

IDS, CAMERAS, IMAGES = 120, 5, 4  # of the set that the demo uses: 1200 for training
_QUALITY = 90  # of the JPEG files


def draw(
    out: str, *, ids: int = IDS, cameras: int = CAMERAS, images: int = IMAGES, seed: int = 0
) -> str:
    """Draw a set into the new folder ``out``, a path or URI, and return ``out``.

    Half of the identities (rounded up) are for training, the others for query and gallery: the first
    image of each camera is a query (of the first camera alone where ``images`` is 1). Every image is a
    function of the seed, its identity, camera and number, so it recurs in a larger set.
    A set of the same arguments that is already there is kept.

    Args:
        out: the folder; must be new or empty, or hold a set of the same arguments.
        ids: all identities, at least 4.
        cameras: at least 2.
        images: per identity and camera, at least 1.
        seed: of every draw.

    Raises:
        UsageError: a number is too small, or the folder holds something else.
    """
    if ids < 4 or cameras < 2 or images < 1:
        raise UsageError(
            f"ids = {ids}, cameras = {cameras}, images = {images}; at least 4, 2 and 1 are needed"
        )
    made_by = {"version": VERSION, "ids": ids, "cameras": cameras, "images": images, "seed": seed}
    filesystem, inner = open_folder(out)
    if _is_there(filesystem, inner, made_by):
        return out
    parent, _, name = inner.rpartition("/")
    temporary = f"{parent}/.{name}.{uuid4().hex[:8]}"
    filesystem.create_dir(temporary, recursive=True)
    try:
        _write(filesystem, temporary, made_by)
        filesystem.move(temporary, inner)
    except BaseException:
        filesystem.delete_dir(temporary)
        raise
    return out


def _is_there(filesystem: pafs.FileSystem, folder: str, made_by: dict[str, int]) -> bool:
    """Whether the folder holds this very set.

    Raises:
        UsageError: it holds another set, or something else.
    """
    inside = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    if not inside:
        return False
    marker = f"{folder}/{MARKER}"
    if marker not in [info.path for info in inside]:
        raise UsageError(f"{folder} holds something else; give a new folder")
    with filesystem.open_input_stream(marker) as stream:
        there = json.loads(stream.readall())
    if there != made_by:
        raise UsageError(f"{folder} holds another set ({there}); give a new folder or delete it")
    return True


def _write(filesystem: pafs.FileSystem, folder: str, made_by: dict[str, int]) -> None:
    ids, images, seed = made_by["ids"], made_by["images"], made_by["seed"]
    for name in ("bounding_box_train", "query", "bounding_box_test"):
        filesystem.create_dir(f"{folder}/{name}", recursive=True)
    camids = range(1, made_by["cameras"] + 1)
    cameras = {camid: camera(seed, camid) for camid in camids}
    for pid in range(1, ids + 1):
        who = person(seed, pid)
        for camid, number in product(camids, range(images)):
            rng = np.random.default_rng(derive(seed, "image", pid, camid, number))
            content = io.BytesIO()
            photograph(who, cameras[camid], rng).save(content, "JPEG", quality=_QUALITY)
            is_query = number == 0 and (images > 1 or camid == 1)
            test = "query" if is_query else "bounding_box_test"
            subset = "bounding_box_train" if pid <= (ids + 1) // 2 else test
            name = f"{pid:04d}_c{camid}s1_{number:06d}_01.jpg"
            with filesystem.open_output_stream(f"{folder}/{subset}/{name}") as stream:
                stream.write(content.getvalue())
    with filesystem.open_output_stream(f"{folder}/{MARKER}") as stream:
        stream.write(json.dumps(made_by).encode())
