"""The main job on a GPU (not run on one yet): `python -m pytest -m gpu` runs this and every other GPU test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pipelines.test_end_to_end import TINY

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def train(data: str, storage: Path, name: str, *flags: str) -> dict:
    command = ["train", "cluster_contrast", "--preset", "demo", "--data", data, "--name", name]
    command += ["--storage", str(storage), *TINY, *flags]
    subprocess.run([sys.executable, "-m", "pipelines", *command], check=True, timeout=600)
    return json.loads((storage / name / "result.json").read_text())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_and_extraction_on_a_gpu(small_set: str, tmp_path: Path) -> None:
    cpu = train(small_set, tmp_path, "cpu")
    gpu = train(small_set, tmp_path, "gpu", "--gpu")
    half = train(small_set, tmp_path, "bf16", "--gpu", "--method.model.precision", "bf16")
    assert gpu["first"]["mAP"] == pytest.approx(cpu["first"]["mAP"], abs=0.02)
    assert half["first"]["mAP"] == pytest.approx(cpu["first"]["mAP"], abs=0.05)
    assert gpu["last"]["round"] == half["last"]["round"] == 2
