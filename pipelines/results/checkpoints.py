"""Checkpoints of a run folder, ``checkpoints/round-0003``: those of this process, and those that Ray Train has kept.

Ray says in a file of its own which of its folders are whole; one of ours has a mark, which is written last.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.fs as pafs

from reid_core.storage import exists, join, open_folder, read_bytes, write_bytes

WHOLE = "whole"  # the mark
RAY = "checkpoint_manager_snapshot.json"
ROUND = re.compile(r"round-(\d+)(?=$|\?)")  # the query of a URI comes behind it


def keep(state: Path, run: str, name: str, most: int) -> None:
    """Copy a folder with the state to ``RUN/checkpoints/NAME``; of those of this process the ``most`` newest stay."""
    place = join(run, "checkpoints", name)
    filesystem, inner = open_folder(place)
    if filesystem.get_file_info(inner).type == pafs.FileType.Directory:
        filesystem.delete_dir(inner)
    filesystem.create_dir(inner, recursive=True)
    pafs.copy_files(
        str(state),
        inner,
        source_filesystem=pafs.LocalFileSystem(),
        destination_filesystem=filesystem,
    )
    write_bytes(join(place, WHOLE), b"")
    for old in _marked(run)[:-most]:
        filesystem, inner = open_folder(old)
        filesystem.delete_dir(inner)


def newest(run: str) -> str | None:
    """The whole checkpoint of the latest round."""
    return max([*_marked(run), *_of_ray(run)], key=round_of, default=None)


def begun_without_ray(run: str) -> str:
    """The newest checkpoint where it is not one of Ray's, which finds its own; '' else."""
    found = newest(run)
    return "" if found is None or found in _of_ray(run) else found


def round_of(path: str) -> int:
    """Rounds that were done at a checkpoint."""
    found = ROUND.search(path)
    assert found, path
    return int(found[1])


@contextmanager
def as_local(path: str) -> Iterator[Path]:
    """The folder of a checkpoint on this machine's disk."""
    if "://" not in path:
        yield Path(path)
        return
    filesystem, inner = open_folder(path)
    with TemporaryDirectory(prefix="reid-checkpoint-") as folder:
        pafs.copy_files(
            inner,
            folder,
            source_filesystem=filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )
        yield Path(folder)


def _marked(run: str) -> list[str]:
    """Whole checkpoints of this process, by round."""
    place = join(run, "checkpoints")
    filesystem, inner = open_folder(place)
    entries = filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    names = sorted((e.base_name for e in entries if ROUND.search(e.base_name)), key=round_of)
    return [
        join(place, name)
        for name in names
        if exists(join(place, name, WHOLE)) and exists(join(place, name, "state.pt"))
    ]


def _of_ray(run: str) -> list[str]:
    """Checkpoints that Ray Train has taken note of and not removed."""
    place = join(run, "checkpoints")
    if not exists(join(place, RAY)):
        return []
    noted = json.loads(read_bytes(join(place, RAY)))
    names = [entry["checkpoint_dir_name"] for entry in noted["checkpoint_results"]]
    return [join(place, n) for n in names if exists(join(place, n, "state.pt"))]
