"""Any tree of images: no ids, no cameras, everything for training."""

from reid_core.data.datasets.listing import Content, Listing, table


def read(listing: Listing, base: str) -> Content:
    """Read all images below the folder ``base``."""
    columns = [(path, "train", None, None, None) for path in listing.images(base)]
    note = "a folder of images: no ids, no cameras, all for training"
    return Content(rows=table(columns), notes=(note,))
