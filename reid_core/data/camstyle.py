"""Copies of training images in the style of other cameras, drawn beforehand by CamStyle (Zhong et al., CVPR 2018)."""

import logging
import re
from collections import defaultdict
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from reid_core.storage import open_folder

COPY = re.compile(r"(?P<stem>.+)_fake_\d+to\d+\.(?:jpe?g|png)", re.IGNORECASE)

logger = logging.getLogger(__name__)


def styled_copies(root: str, folder: str, paths: list[str]) -> dict[str, list[str]]:
    """The copies of each image that has some: paths to paths, all relative to the root, in name order.

    Args:
        root: path or URI of the data.
        folder: where the copies ``STEM_fake_AtoB.jpg`` lie under it; '' gives none.
        paths: of the images.
    """
    if not folder:
        return {}
    filesystem, base = open_folder(root)
    selector = pafs.FileSelector(f"{base}/{folder}", allow_not_found=True)
    of_stem: dict[str, list[str]] = defaultdict(list)
    for name in sorted(info.base_name for info in filesystem.get_file_info(selector)):
        if match := COPY.fullmatch(name):
            of_stem[match["stem"]].append(f"{folder}/{name}")
    stems = {path: PurePosixPath(path).stem for path in paths}
    copies = {path: of_stem[stem] for path, stem in stems.items() if stem in of_stem}
    if not copies:
        logger.warning(
            "no STEM_fake_AtoB.jpg of a training image in %s/%s: training goes on without copies in other "
            "cameras' styles, and the published figures are out of reach", root, folder,
        )  # fmt: skip
    return copies
