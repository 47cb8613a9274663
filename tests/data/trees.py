"""Small trees of real images for the tests of the layouts."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from reid_core.tables import IMAGES


def jpeg(width: int = 8, height: int = 16) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 50)).save(content, "JPEG")
    return content.getvalue()


def record(*values: int | str | None) -> dict[str, int | str | None]:
    """A row of IMAGES."""
    return dict(zip(IMAGES.names, values, strict=True))


def plant(root: Path, paths: Iterable[str]) -> str:
    """Put a real image at each relative path and return the root."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg())
    return str(root)


MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c2s1_000301_01.jpg",
    "bounding_box_train/-1_c2s1_000401_01.jpg",
    "query/0003_c1s1_000151_00.jpg",
    "bounding_box_test/0003_c4s6_000810_00.jpg",
    "bounding_box_test/0000_c4s6_000810_01.jpg",
    "bounding_box_test/-1_c3s6_000810_02.jpg",
)
DUKE = (
    "bounding_box_train/0001_c2_f0046182.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c8_f0046985.jpg",
)
PERSONX = tuple(
    f"{folder}/{pid:04d}_c{camera}_{pid}.jpg"
    for folder, pid in (("bounding_box_train", 1), ("query", 2), ("bounding_box_test", 2))
    for camera in (3, 4, 8, 10, 11, 12)
)
MSMT17 = {  # list -> (path below train or test, person)
    "list_train.txt": ("0000/0000_000_01_0303morning_0015_0.jpg", 0),
    "list_val.txt": ("0001/0001_005_14_0303morning_0015_0_ex.jpg", 1),
    "list_query.txt": ("0000/0000_002_03_0303noon_0015_1.jpg", 0),
    "list_gallery.txt": ("0000/0000_004_15_0303noon_0015_1.jpg", 0),
}


def plant_msmt17(root: Path, train: str = "train", test: str = "test") -> str:
    """MSMT17 with lists; another name for the two folders makes V2."""
    for name, (path, pid) in MSMT17.items():
        folder = train if name in ("list_train.txt", "list_val.txt") else test
        plant(root, [f"{folder}/{path}"])
        (root / name).write_text(f"{path} {pid}\n")
    return str(root)
