"""``reid plan`` as it is called: the table, what does not fit, exit codes."""

import os

import pytest

from pipelines.cli import main
from pipelines.plan import PlanJob, run
from reid_core.errors import UsageError

STAGES = ["extract", "k-NN", "Jaccard", "DBSCAN", "train", "evaluate", "run of 50 rounds"]
NODE = ["--cpus", "16", "--memory", "64", "--gpus", "0", "--bf16"]


def table(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if "|" in line]


def test_the_table_and_its_constants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--images", "32621", "--dim", "2048", *NODE]) == 0
    out = capsys.readouterr().out
    head, *rows = table(out)
    assert head == ["stage", "time", "RAM a node", "VRAM a GPU", "disk"]
    assert [row[0] for row in rows] == STAGES
    assert rows[1] == ["k-NN", "0.6 s", "1.4 GB", "-", "-"]
    assert "32,621 images x 2048, 8,155 queries x 32,621 gallery images; 16 cores with bf16" in out
    assert "everything fits" in out
    assert "measured on 2 shared cores" in out
    assert "GPU" not in out.split("everything fits")[1]


def test_gpus_are_named_as_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--gpus", "4", "--gpu-memory", "80", "--cpus", "64", "--memory", "256"]
    assert main(["plan", "--images", "32621", *flags]) == 0
    out = capsys.readouterr().out
    assert "data-sheet values, not run on a GPU" in out
    assert "4 GPUs of 80.0 GB; train workers: 4, blocks: 1" in out


def test_what_does_not_fit_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--cpus", "2", "--memory", "24", "--gpus", "1", "--gpu-memory", "24"]
    assert main(["plan", "--images", "10_000_000", *flags]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "does not fit" in line]
    assert any("k-NN needs" in line and "--shards" in line for line in lines)
    assert any("VRAM on a GPU of 24.0 GB" in line for line in lines)
    assert any("connected component" in line for line in lines)


def test_what_is_not_given_is_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    stages = run(PlanJob(images=1000, dim=64, gpus=0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    out = capsys.readouterr().out
    assert f"{len(os.sched_getaffinity(0))} cores" in out
    assert f"{memory:,.1f} GB RAM, no GPU" in out
    assert [stage.name for stage in stages] == STAGES


def test_query_and_gallery_may_be_none() -> None:
    stages = run(PlanJob(images=1000, query=0, gallery=0, gpus=0))
    assert stages[5].seconds == 0


@pytest.mark.parametrize("flag", ["images", "dim", "memory", "workers", "rounds"])
def test_numbers_that_cannot_be(flag: str) -> None:
    with pytest.raises(UsageError, match=f"--{flag} 0; must be at least 1"):
        run(PlanJob(**{"images": 1000, flag: 0}))


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert main(["plan", "--images", "many"]) == 2
    assert main(["plan", "--images", "1000", "--gpus", "-1"]) == 2
    assert "--gpus -1" in capsys.readouterr().err
