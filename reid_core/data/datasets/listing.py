"""The files below a root, and what a layout makes of them."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs

from reid_core.errors import UsageError
from reid_core.storage import open_folder
from reid_core.tables import IMAGES

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
ROWS = pa.schema(list(IMAGES)[1:])  # IMAGES before the images are numbered
_FEW = 3  # names in a message


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies below a root; hidden files and ``__MACOSX`` copies are left out."""

    root: str  # absolute path, or the URI as given
    inner: str  # the same inside the file system
    filesystem: pafs.FileSystem
    files: Mapping[str, pafs.FileInfo]  # by path relative to the root, sorted

    def images(self, folder: str = "") -> list[str]:
        """The relative paths of all images below ``folder``, itself relative, sorted."""
        prefix = under(folder, "")
        return [p for p in self.files if p.startswith(prefix) and p.lower().endswith(SUFFIXES)]

    def where(self, path: str) -> str:
        """The full name of a relative path, for messages."""
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        """The content of one of the files."""
        with self.filesystem.open_input_stream(f"{self.inner}/{path}") as stream:
            return stream.readall()

    def name(self, folder: str) -> str:
        """The last part of a folder's name; of the root's where ``folder`` is empty."""
        return (folder or self.inner).rpartition("/")[2]

    def fingerprint(self, paths: Iterable[str]) -> str:
        """32 hex digits that change with any path, size or time of change; no file is opened."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(paths):
            info = self.files[path]
            digest.update(f"{path}\0{info.size}\0{info.mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a layout says of its images, before they are numbered."""

    rows: pa.Table  # ROWS, any order
    notes: tuple[str, ...] = ()
    published: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()  # the lists that were read; part of the fingerprint


def list_files(root: str) -> Listing:
    """List everything below ``root``, a path or URI, without opening a file.

    Raises:
        UsageError: there is no such folder.
    """
    filesystem, inner = open_folder(root)
    if filesystem.get_file_info(inner).type != pafs.FileType.Directory:
        raise UsageError(f"{root}: no such folder; give the folder that holds the images")
    infos = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True))
    files = {i.path.removeprefix(inner).lstrip("/"): i for i in infos if i.is_file}
    return Listing(
        root=root.rstrip("/") if "://" in root else inner,
        inner=inner,
        filesystem=filesystem,
        files={path: files[path] for path in sorted(files) if not _hidden(path)},
    )


def table(rows: Iterable[tuple[str, str, int | None, int | None, int | None]]) -> pa.Table:
    """ROWS of (path, split, pid, camid, tracklet)."""
    columns = zip(*rows, strict=True)
    return pa.table(list(map(list, columns)) or [[] for _ in ROWS], schema=ROWS)


def under(folder: str, path: str) -> str:
    """``folder/path``, or ``path`` where ``folder`` is the root itself ('')."""
    return f"{folder}/{path}" if folder else path


def some(names: Iterable[str]) -> str:
    """How many ``names`` there are, and the first few of them, for a message."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:_FEW])}{', ...' if len(names) > _FEW else ''})"


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
