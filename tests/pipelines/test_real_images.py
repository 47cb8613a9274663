"""Real images, a network from random weights and no labels: the drawings of Omniglot in Market layout."""

import json
import os
from pathlib import Path

import pytest

from pipelines.cli import main


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
def test_drawings_are_told_apart_without_labels(tmp_path: Path) -> None:
    folder = os.environ.get("REID_TEST_DATA")
    if not folder or not (Path(folder) / "omniglot").is_dir():
        pytest.skip("REID_TEST_DATA names no folder that holds omniglot/ in Market-1501's layout")
    data = str(Path(folder) / "omniglot")
    command = ["train", "cluster_contrast", "--preset", "omniglot", "--data", data]
    assert main([*command, "--storage", str(tmp_path), "--name", "drawings", "--local"]) == 0
    result = json.loads((tmp_path / "drawings" / "result.json").read_text())
    assert result["first"]["mAP"] < 0.30
    assert result["last"]["mAP"] >= 0.60
