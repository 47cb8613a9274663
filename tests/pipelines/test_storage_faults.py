"""Storage that fails: an object store that is busy for a moment, and a disk on which nothing can be written."""

import errno
import resource
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from benchmarks.s3 import FailingServer
from pipelines.results.progress import Listener
from pipelines.results.run_folder import RunFolder
from reid_core.storage import exists, read_bytes, write_bytes
from reid_core.tables import LABELS, read_table, write_table
from tests.pipelines.test_progress import IMAGES_TABLE, ROUND

BLOCK = 2**20


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingServer]:
    with FailingServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_file_of_many_parts(server: FailingServer) -> None:
    content = bytes(range(256)) * (12 * BLOCK // 256)  # above the size of one part of an upload
    write_bytes("s3://bucket/a/b.bin", content)
    written = server.failed
    assert written >= 2
    assert read_bytes("s3://bucket/a/b.bin") == content
    assert server.failed == written + 1
    filesystem, _ = pafs.FileSystem.from_uri("s3://bucket")
    assert [i.base_name for i in filesystem.get_file_info(pafs.FileSelector("bucket/a"))] == [
        "b.bin"
    ]


def test_a_file_shorter_than_the_answer_of_a_busy_store(server: FailingServer) -> None:
    write_bytes("s3://bucket/a", b"x")
    written = server.failed
    assert read_bytes("s3://bucket/a") == b"x"
    assert server.failed == written + 1


def test_a_table(server: FailingServer) -> None:
    labels = pa.table([[1, 2], [0, 0], [3, -1], [True, False], [0.5, 0.0]], schema=LABELS)
    write_table(labels, "s3://bucket/labels.parquet")
    assert read_table("s3://bucket/labels.parquet", LABELS).equals(labels)
    assert server.failed >= 2


def test_a_store_that_stays_busy_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with FailingServer(times=1000) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match=r"s3://bucket/a.bin: not written .*SLOW_DOWN"):
            write_bytes("s3://bucket/a.bin", b"content")
        assert not exists("s3://bucket/a.bin")


def test_a_write_that_failed_once_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path), "run")
    folder.open({"identity": {}}, {})
    left = [OSError(errno.EIO, "Input/output error")]

    def write_later(path: Path, content: bytes) -> None:
        if left:
            raise left.pop()
        write_bytes(path, content)

    monkeypatch.setattr("pipelines.results.run_folder.write_bytes", write_later)
    queue: Any = Queue()
    with Listener(queue, folder, 2, IMAGES_TABLE) as listener:
        for number in range(2):
            listener.events.put({"kind": "round", "round": number, **ROUND})
    folder.close()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line.split('"round": ')[1][0] for line in lines] == ["0", "1"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "labels" / "round-0001.parquet"
    write_bytes(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # a disk with room for 1000 bytes
    try:
        with pytest.raises(OSError, match=rf"{path}: not written .*File too large"):
            write_bytes(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
