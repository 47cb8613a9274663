"""Folders that are local paths or any URI that pyarrow opens, and atomic writes to them."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs as pafs

from reid_core.errors import UsageError

PAUSES_S = (0.1, 0.5, 2.0)  # before a failed read is repeated


def open_folder(root: str | Path) -> tuple[pafs.FileSystem, str]:
    """Open ``root``, a local path or a URI such as ``s3://bucket/folder``.

    Returns:
        The file system and the folder's path inside it, without a trailing slash.

    Raises:
        UsageError: the URI names no file system that pyarrow knows, or holds a password.
    """
    text = os.fspath(root)
    if "://" not in text:
        return pafs.LocalFileSystem(), str(Path(text).expanduser().resolve())
    if re.match(r"[^/]+://([^/]*@|[^/]*:.*@)", text):  # a key may hold a "/"
        raise UsageError(  # without the URI, which holds them
            "a URI holds a key or a password, which would be written to logs and configurations; give them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, say) of every node"
        )
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{text}: pyarrow cannot open this URI ({error}); use a path, file:// or s3://"
        ) from error
    return filesystem, path.rstrip("/")


def join(folder: str | Path, *parts: str) -> str:
    """Append ``parts`` to a path or URI; the query of a URI (``?region=...``) stays behind it."""
    head, mark, query = os.fspath(folder).partition("?")
    return "/".join([head.rstrip("/"), *parts]) + mark + query


def exists(path: str | Path) -> bool:
    """Whether a file or folder lies at ``path`` (path or URI)."""
    filesystem, inner = open_folder(path)
    return filesystem.get_file_info(inner).type != pafs.FileType.NotFound


def read_bytes(path: str | Path) -> bytes:
    """The whole file at ``path`` (path or URI).

    It is asked for again where that fails: pyarrow's own retries cannot read an object that is
    shorter than the answer by which its store says that it is busy.
    """
    filesystem, inner = open_folder(path)

    def read() -> bytes:
        with filesystem.open_input_stream(inner) as stream:
            return stream.readall()

    for pause_s in PAUSES_S:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(pause_s)
    return read()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[tuple[pafs.FileSystem, str]]:
    """Yield a temporary name beside ``path``; it is renamed to ``path`` when the block ends well.

    A reader sees the old file or the whole new one. The folder is made when it is missing.

    Raises:
        OSError: the file system or the block failed; names ``path``, which is as it was.
    """
    filesystem, inner = open_folder(path)
    parent, _, name = inner.rpartition("/")
    temporary = f"{parent}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        filesystem.create_dir(parent, recursive=True)
        yield filesystem, temporary
        filesystem.move(temporary, inner)
    except BaseException as error:
        with suppress(OSError):  # there is none, or it is the file system that failed
            filesystem.delete_file(temporary)
        if isinstance(error, OSError):
            raise OSError(
                f"{path}: not written ({error}); look at the storage and repeat the command"
            ) from error
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` (path or URI) atomically."""
    with (
        atomic_path(path) as (filesystem, temporary),
        filesystem.open_output_stream(temporary) as stream,
    ):
        stream.write(content)
