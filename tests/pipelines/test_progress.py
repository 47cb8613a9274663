"""The driver's ear: events become lines of the run folder, and a full disk is told when the run ends."""

import errno
import json
import logging
import time
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray.exceptions import RayActorError

from pipelines.nodes.inside import forward_logs
from pipelines.results.progress import Listener
from pipelines.results.run_folder import RunFolder, summarise
from reid_core.labelling.given import given_labels
from reid_core.tables import IMAGES, write_table

ROUND = {
    "clusters": 3.0,
    "outliers": 0.1,
    "seconds_label": 1.0,
    "seconds_train": 1.0,
    "loss_x": 2.0,
}


PID = [7, 7, 8, 8, None, -1]
IMAGES_TABLE = pa.table(
    [range(6), [f"{i}.jpg" for i in range(6)], ["train"] * 6, PID, *[[None] * 6] * 2],
    schema=IMAGES,
)


def opened(tmp_path: Path) -> RunFolder:
    folder = RunFolder(str(tmp_path), "run")
    folder.open({"identity": {"seed": 1}}, {})
    return folder


def test_the_last_line_of_a_round_wins(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with Listener(Queue(), folder, 2, IMAGES_TABLE) as listener:
        for loss in (2.0, 1.0):  # a redone round
            listener.events.put({"kind": "round", "round": 0, **ROUND, "loss_x": loss})
    folder.close()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss_x"] for line in lines] == [1.0]


def test_labels_are_compared_with_known_ids(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    labels = given_labels(np.arange(6), np.array([[0], [0], [1], [1], [1], [0]]), None)
    path = str(tmp_path / "labels.parquet")
    write_table(labels.table(), path)
    with Listener(Queue(), folder, 2, IMAGES_TABLE) as listener:
        listener.events.put({"kind": "labels", "round": 1, "path": path})
    folder.close()
    (line,) = (json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open())
    assert (line["kind"], line["round"]) == ("quality", 1)
    assert line["ari_clustered"] == line["pairwise_f_singletons"] == 1  # the last two have no id


def test_a_full_disk_fails_the_run_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened(tmp_path)
    folder.add("round", {"round": 0, **ROUND})
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.results.run_folder.write_bytes", full)
    with (
        pytest.raises(OSError, match="No space left"),
        Listener(Queue(), folder, 2, IMAGES_TABLE) as listener,
    ):
        listener.events.put({"kind": "round", "round": 1, **ROUND})
    folder.close()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_first_is_null_where_round_0_was_not_evaluated() -> None:
    row = {"mAP": 0.5, "mINP": 0.1, "rank1": 0.6, "rank5": 0.7, "rank10": 0.8, "label_free": 0.2}
    result = summarise([{"round": 5, **row}])
    assert result["first"]["mAP"] is None
    assert result["last"]["round"] == 5


def test_a_lost_driver_does_not_end_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone:
        def put(self, event: Any) -> None:
            raise RayActorError

    forward_logs(Gone())  # type: ignore[arg-type]
    try:
        logging.getLogger("reid_core").info("still at work")
    finally:
        forward_logs(None)
    assert "still at work" in capsys.readouterr().err


def test_a_long_silence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("pipelines.results.progress.QUIET_S", 0.05)
    monkeypatch.setattr("pipelines.results.bar.Bar.every_s", 0.05)
    folder = opened(tmp_path)
    silence = "no word from the workers for %.0f s"
    with Listener(Queue(), folder, 2, IMAGES_TABLE, silence=silence):
        time.sleep(0.5)
    folder.close()
    assert "no word from the workers for" in caplog.text
