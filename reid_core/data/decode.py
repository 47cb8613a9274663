"""From a path to pixels: encoded images kept on this node's disk, decoded to RGB, resized.

H, W rows and columns of an image. All images are uint8 tensors (3, H, W), red first.
"""

import hashlib
import io
import logging
import os
import uuid
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchcodec.decoders import decode_image  # pyright: ignore[reportPrivateImportUsage]

from reid_core.storage import open_folder

logger = logging.getLogger(__name__)

FAST_FORMATS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
)  # JPEG and PNG: torchcodec, 3 times as fast as Pillow


def decode(content: bytes) -> Tensor:
    """Decode an image file of any usual format to (3, H, W) uint8 RGB.

    Grey, palette and CMYK become RGB, alpha is dropped, the first frame of an animation is taken,
    and the EXIF orientation is applied.

    Raises:
        ValueError: this is no image, or one that is cut short. (A JPEG that is damaged in the
            middle but has its end decodes with wrong pixels: the format has no checksum.)
    """
    if not content:
        raise ValueError("the file is empty")
    if content.startswith(FAST_FORMATS):
        return _decode_fast(content)
    return _decode_any(content)


def _decode_fast(content: bytes) -> Tensor:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        image = decode_image(encoded, mode="RGB", output_dtype="auto")
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(", ")[2]  # drops the place in the C++ source
        raise ValueError(f"no whole JPEG or PNG image: {reason.rstrip('.')}") from error
    if image.dtype == torch.uint16:  # a PNG of 16 bits: keep the upper 8
        image = (image.int() >> 8).to(torch.uint8)
    return image


def _decode_any(content: bytes) -> Tensor:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except Image.UnidentifiedImageError as error:
        raise ValueError("not an image of a known format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"no whole image: {error}") from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


@cache
def _open(root: str, _process: int) -> tuple[pafs.FileSystem, str]:
    """Open a root once a process: connections must not be shared after a fork."""
    return open_folder(root)


class ImageStore:
    """The encoded images of one root; each is fetched once and then read from this node's disk.

    Images are taken as unchanging: use another cache folder when files of a root were replaced. Any
    number of processes may share a cache folder. A store may be pickled.

    Args:
        root: path or URI of the folder that image paths are relative to.
        cache: a folder on a local disk; None reads from the root each time.
    """

    def __init__(self, root: str, cache: str | None = None) -> None:
        self.root = root
        self.cache = None if cache is None else Path(cache).expanduser()
        self._disk_failed = False

    @property
    def folder(self) -> str | None:
        """The cache folder as it was given."""
        return None if self.cache is None else str(self.cache)

    def __reduce__(self) -> tuple[type["ImageStore"], tuple[str, str | None]]:
        return ImageStore, (self.root, self.folder)

    def read(self, path: str) -> bytes:
        """The encoded image at ``path``, relative to the root.

        Raises:
            OSError: it cannot be read from the root. Trouble with the cache is only logged.
        """
        if self.cache is None:
            return self._fetch(path)
        kept = self.cache / self._name(path)
        try:
            content = kept.read_bytes()
        except OSError:
            content = b""
        if not content:  # absent, or emptied by a crash of the node
            content = self._fetch(path)
            self._keep(content, kept)
        return content

    def _name(self, path: str) -> str:
        digest = hashlib.blake2b(f"{self.root}\n{path}".encode(), digest_size=16).hexdigest()
        return f"{digest[:2]}/{digest[2:]}"

    def _fetch(self, path: str) -> bytes:
        filesystem, folder = _open(self.root, os.getpid())
        with filesystem.open_input_stream(f"{folder}/{path}", compression=None) as stream:
            return stream.readall()

    def _keep(self, content: bytes, kept: Path) -> None:
        """Write atomically; after the first failure this process stops trying."""
        if self._disk_failed:
            return
        temporary = kept.with_name(f"{kept.name}.{uuid.uuid4().hex[:8]}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                temporary.replace(kept)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._disk_failed = True
            logger.warning("%s: no more images are cached (%s); free some space", self.cache, error)


def load(store: ImageStore, path: str, height: int, width: int) -> Tensor:
    """Read, decode and resize one image to (3, height, width) uint8: T_test of methods.md 1.2.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no whole image; the message names it.
    """
    content = store.read(path)
    try:
        image = decode(content)
    except ValueError as error:
        raise ValueError(f"{store.root}/{path}: {error}; remove or replace the file") from error
    return resize(image, height, width)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, H, W) uint8 to (3, height, width), bicubic with antialias."""
    (resized,) = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)
    return resized
