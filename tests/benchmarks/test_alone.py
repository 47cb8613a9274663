"""The rounds without Ray, which the benchmark of all methods makes, give the numbers of ``reid train``."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks import alone
from pipelines.cli import main
from tests.pipelines.test_end_to_end import TINY


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("method", ["cluster_contrast", "hybrid_memory"])
def test_equals_a_run_on_ray(method: str, small_set: str, tmp_path: Path) -> None:
    command = [method, "--preset", "demo", "--data", small_set, "--storage", str(tmp_path), *TINY]
    command += ["--method.model.precision", "fp64"]  # the number of threads is another one
    alone.run([*command, "--name", "alone"])
    assert main(["train", *command, "--name", "ray"]) == 0
    weights = [
        safetensors.torch.load_file(tmp_path / n / "last.safetensors") for n in ("alone", "ray")
    ]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-8, rtol=0)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("alone", "ray")]
    assert results[0]["last"] == pytest.approx(results[1]["last"], abs=1e-6)
