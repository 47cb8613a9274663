"""Every method through the command line on a local Ray: two short rounds of its demo."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.cli import main
from reid_core import method as contract

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]
SHORT = [
    "--method.steps", "3", "--method.batch-size", "16", "--method.bn-group", "8", "--rounds", "2",
    "--block", "32", "--cache", "",
]  # fmt: skip
FEW_IMAGES = {"min_samples": "2", "k1": "8", "k2": "3", "instances": "4"}  # where a method has them


@pytest.mark.parametrize("name", contract.names())
def test_two_rounds(name: str, small_set: str, tmp_path: Path) -> None:
    config = contract.load(name).PRESETS["demo"].config
    flags = [
        word
        for field, value in FEW_IMAGES.items()
        if hasattr(config, field)
        for word in (f"--method.{field.replace('_', '-')}", value)
    ]
    command = ["train", name, "--preset", "demo", "--data", small_set, "--storage", str(tmp_path)]
    assert main([*command, "--name", "a", *SHORT, *flags]) == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["last"]["round"] == 2
    assert 0 <= result["last"]["mAP"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").open()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert len(rounds) == 2
    assert all(np.isfinite(v) for line in rounds for k, v in line.items() if k.startswith("loss_"))
    assert len(list((tmp_path / "a" / "labels").iterdir())) == 3
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    sources = [contract.labels_from(contract.load(name), config, number) for number in range(3)]
    if "none" not in sources:  # then there are always labels to judge
        assert all(line["label_free"] is not None for line in evaluations)
    if name == "hdcpd":
        assert all(0 <= line["mAP_teacher"] <= 1 for line in evaluations)
        assert (tmp_path / "a" / "last_teacher.safetensors").exists()
