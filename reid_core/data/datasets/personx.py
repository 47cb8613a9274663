"""PersonX, the subset of six cameras that unsupervised methods use."""

from reid_core.data.datasets import market_like
from reid_core.data.datasets.listing import Content, Listing

PUBLISHED = {"train": (410, 9840), "query": (856, 5136), "gallery": (856, 30816)}
NEEDS = market_like.NEEDS.replace("0002_c1s1_000451_03", "0001_c3_1")
_CAMERAS = {3, 4, 8, 10, 11, 12}


def owns(names: list[str]) -> bool:
    """Whether the cameras of the training images are just PersonX's."""
    return market_like.cameras(names) == _CAMERAS


def read(listing: Listing, base: str) -> Content:
    """Read the set in the folder ``base``."""
    return Content(rows=market_like.rows(listing, base), published=PUBLISHED)
