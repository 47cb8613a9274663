"""Market-1501, and any other set with its folders and names; ``reid synth`` writes this layout too."""

import re

from reid_core.data.datasets import market_like
from reid_core.data.datasets.listing import Content, Listing, under

PUBLISHED = {"train": (751, 12936), "query": (750, 3368), "gallery": (751, 15913)}
MARKER = "synthetic.json"  # lies in the folder of a set that reid synth drew
NEEDS = market_like.NEEDS
_NAME = re.compile(r"-?\d{1,4}_c\ds\d_\d{6}_\d{2}")  # person, camera, sequence, frame, box


def read(listing: Listing, base: str) -> Content:
    """Read the set in the folder ``base``."""
    rows = market_like.rows(listing, base)
    if under(base, MARKER) in listing.files:
        return Content(rows=rows, notes=("synthetic, drawn by reid synth",))
    if not all(map(_NAME.match, market_like.names(listing, base))):
        return Content(rows=rows, notes=("not Market-1501 itself: images are named otherwise",))
    return Content(rows=rows, published=PUBLISHED)
