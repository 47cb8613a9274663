"""DukeMTMC-reID."""

import re

from reid_core.data.datasets import market_like
from reid_core.data.datasets.listing import Content, Listing

PUBLISHED = {"train": (702, 16522), "query": (702, 2228), "gallery": (1110, 17661)}
NEEDS = market_like.NEEDS.replace("0002_c1s1_000451_03", "0001_c2_f0046182")
_NAME = re.compile(r"\d+_c\d_f\d+")  # person, camera, frame


def owns(names: list[str]) -> bool:
    """Whether the names of the training images are Duke's."""
    return bool(names) and all(map(_NAME.match, names))


def read(listing: Listing, base: str) -> Content:
    """Read the set in the folder ``base``."""
    note = "DukeMTMC-reID was withdrawn by its authors in 2019; consider another set"
    return Content(rows=market_like.rows(listing, base), notes=(note,), published=PUBLISHED)
