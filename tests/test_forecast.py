"""The forecast against what was measured on the machine that its constants come from, and by hand."""

from dataclasses import replace

import pytest

from reid_core.forecast import (
    PROCESS,
    Machine,
    Stage,
    Work,
    dense_cuml,
    forecast,
    misfits,
    neighbours,
    whole_run,
)

LABELS = ("k-NN", "Jaccard", "DBSCAN")
CORE = Machine(cpus=1, memory=24e9, bf16=True)  # seconds are then CPU seconds
SMALL = Work(images=1000, dim=100, query=250, gallery=1000)


def market(images: int, *, query: int = 0, gallery: int = 0) -> Work:
    return Work(images=images, dim=2048, query=query, gallery=gallery)


def by_name(work: Work, machine: Machine) -> dict[str, Stage]:
    return {stage.name: stage for stage in forecast(work, machine)}


def assert_within_a_factor_of_two(forecast: float, measured: float) -> None:
    assert measured / 2 <= forecast <= measured * 2


@pytest.mark.parametrize(
    ("images", "cpu_seconds"), [(4000, 0.44), (12_936, 2.77), (32_621, 10.3), (126_441, 115)]
)
def test_time_of_the_label_stage(images: int, cpu_seconds: float) -> None:
    stages = by_name(market(images), CORE)
    assert_within_a_factor_of_two(sum(stages[n].seconds for n in LABELS), cpu_seconds)


@pytest.mark.parametrize(("images", "wall_seconds"), [(32_621, 5.9), (126_441, 62)])
def test_two_cores_take_half_the_time(images: int, wall_seconds: float) -> None:
    stages = by_name(market(images), replace(CORE, cpus=2))
    assert_within_a_factor_of_two(sum(stages[n].seconds for n in LABELS), wall_seconds)


@pytest.mark.parametrize(
    ("images", "process"),
    [(12_936, 0.21e9 + 0.106e9 + PROCESS), (32_621, 1.66e9), (126_441, 4.4e9)],
)
def test_memory_of_the_label_stage(images: int, process: float) -> None:
    stages = by_name(market(images), CORE)
    assert_within_a_factor_of_two(max(stages[n].ram for n in LABELS), process)


def test_a_million_in_eight_blocks() -> None:
    """36 tile tasks on two cores took some 2,400 CPU-s."""
    million = Work(images=10**6, dim=256, query=0, gallery=0, shards=8)
    assert_within_a_factor_of_two(by_name(million, CORE)["k-NN"].seconds, 2400)


def test_nodes_share_the_work_of_several_blocks() -> None:
    ten = replace(market(10**7), shards=77)
    machine = replace(CORE, cpus=64, memory=1e12, gpus=8)
    one, eight = (by_name(ten, replace(machine, nodes=nodes)) for nodes in (1, 8))
    for name in ("extract", "k-NN", "train"):
        assert one[name].seconds == pytest.approx(8 * eight[name].seconds)
    assert one["Jaccard"].seconds > eight["Jaccard"].seconds > 1100  # the joins are one task
    assert one["DBSCAN"].seconds == eight["DBSCAN"].seconds == pytest.approx(200)
    assert eight["k-NN"].ram > 4 * ten.features  # in a run they meet on one node
    assert eight["k-NN"].vram == one["k-NN"].vram < 4e9
    alone = replace(ten, shards=1)  # one block is one task on one GPU
    whole = by_name(alone, replace(machine, nodes=8))
    assert whole["k-NN"].seconds == pytest.approx(64 * eight["k-NN"].seconds, rel=0.1)
    assert whole["k-NN"].vram > 80e9
    workers = replace(ten, workers=64)
    assert by_name(workers, replace(machine, nodes=8))["train"].ram < 2e12


def test_the_jaccard_graph_on_a_gpu() -> None:
    """Features, 60 bytes for each of 100 non-zeros a row, and a chunk."""
    stage = by_name(market(32_621), replace(CORE, gpus=1))["Jaccard"]
    assert stage.vram == pytest.approx(
        4 * 32_621 * 2048 + 60 * 100 * 32_621 + 100 * 2**26, rel=0.01
    )


def test_parts_of_the_label_stage() -> None:
    stages = by_name(market(32_621), CORE)
    assert_within_a_factor_of_two(stages["k-NN"].seconds, 8.95)
    assert_within_a_factor_of_two(stages["Jaccard"].seconds, 1.55)


def test_k_nn_without_bf16_units() -> None:
    """Half the product alone is 20 CPU-s in fp32; faiss takes 39.7."""
    without = neighbours(market(32_621), replace(CORE, bf16=False))
    assert 20 <= without.seconds <= 39.7
    assert without.ram < neighbours(market(32_621), CORE).ram  # no copy in bf16


@pytest.mark.parametrize(
    ("query", "gallery", "cpu_seconds"), [(3368, 15_913, 0.18), (11_659, 82_161, 5)]
)
def test_time_of_ranking(query: int, gallery: int, cpu_seconds: float) -> None:
    """Beyond the images' embedding and the products, which are those of more feature values."""
    work = market(1, query=query, gallery=gallery)
    short, long = (
        by_name(replace(work, dim=dim), CORE)["evaluate"].seconds for dim in (2048, 4096)
    )
    embedding = by_name(market(query + gallery), CORE)["extract"].seconds
    assert_within_a_factor_of_two(short - (long - short) - embedding, cpu_seconds)


def test_extraction_at_26_images_a_second() -> None:
    stage = by_name(market(2600), replace(CORE, cpus=2))["extract"]
    assert stage.seconds == pytest.approx(100)


def test_bytes_by_hand() -> None:
    """Features of 0.4 MB: twice, in bf16 once, 40 k candidates' bytes; V and edges; labels of 51 rounds."""
    stages = by_name(SMALL, CORE)
    assert stages["k-NN"].ram == PROCESS + 2 * 400_000 + 200_000 + 40 * 30 * 1000
    assert stages["Jaccard"].ram == PROCESS + 2 * 400_000 + (8 * 30 + 16 * 100 + 12 * 30) * 1000
    assert stages["extract"].disk == 400_000 + 20_000 * 1000
    assert stages["DBSCAN"].disk == 40 * 1000 * 51
    assert dense_cuml(SMALL) == pytest.approx(9.2e6)


def test_growth_with_images() -> None:
    """Doubling N doubles memory and Jaccard, and makes no more than four times the k-NN."""
    one, two = (by_name(market(n), CORE) for n in (10**6, 2 * 10**6))
    for name in LABELS:
        assert two[name].ram - PROCESS == pytest.approx(2 * (one[name].ram - PROCESS))
    assert two["Jaccard"].seconds == pytest.approx(2 * one["Jaccard"].seconds)
    assert 3.5 < two["k-NN"].seconds / one["k-NN"].seconds <= 4


def test_gpus_share_products_and_steps() -> None:
    machine, million = replace(CORE, cpus=64, gpus=1), replace(market(10**6), shards=8)
    one = by_name(million, machine)
    two = by_name(replace(million, workers=2), replace(machine, gpus=2))
    for name in ("train", "k-NN"):
        assert 1.8 < one[name].seconds / two[name].seconds <= 2
    assert two["train"].vram < one["train"].vram
    assert all(stage.vram == 0 for stage in forecast(million, CORE))


def test_whole_run() -> None:
    stages = forecast(SMALL, CORE)
    run = whole_run(replace(SMALL, rounds=20, eval_every=10), stages)
    seconds = [stage.seconds for stage in stages]
    assert run.seconds == pytest.approx(20 * sum(seconds[:-1]) + 3 * seconds[-1])
    assert run.ram == max(stage.ram for stage in stages)
    assert run.disk == sum(stage.disk for stage in stages)


def test_what_does_not_fit_is_named_with_a_cure() -> None:
    work = market(10**6, query=1000, gallery=1000)
    machine = Machine(cpus=16, memory=12e9, bf16=True, gpus=1, gpu_memory=10e9)
    lines = misfits(work, machine, forecast(work, machine))
    assert [line.split(" needs ")[0] for line in lines if "VRAM" not in line] == [*LABELS, "train"]
    assert any(line.startswith("k-NN needs 18.3 GB of RAM on a node of 12.0 GB") for line in lines)
    assert any("train needs 42.4 GB of VRAM on a GPU of 10.0 GB" in line for line in lines)
    assert any("whole distance matrix needs 9,200.0 GB of VRAM" in line for line in lines)
    assert all(": " in line for line in lines)
    assert any("--shards" in line for line in lines)


def test_enough_of_everything() -> None:
    machine = Machine(cpus=16, memory=64e9, bf16=True, gpus=4, gpu_memory=80e9)
    work = replace(market(32_621), workers=4)
    assert misfits(work, machine, forecast(work, machine)) == []


def test_the_whole_matrix_where_it_fits() -> None:
    machine = replace(CORE, gpus=1, gpu_memory=80e9)
    assert by_name(market(90_000), machine)["DBSCAN"].vram == dense_cuml(market(90_000))
    assert by_name(market(100_000), machine)["DBSCAN"].vram == 0
