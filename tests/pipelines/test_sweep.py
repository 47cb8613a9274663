"""``reid sweep``: spaces, what the papers print for them, both stages."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from ray import tune

from benchmarks.injection import LIMIT_S
from pipelines.cli import main
from pipelines.images.inputs import is_evaluated, scan_inputs
from pipelines.nodes import preflight
from pipelines.nodes.share import Node, divide
from pipelines.run.job import TrainJob
from pipelines.sweep import parse
from pipelines.sweeps import job as sweep_job
from pipelines.sweeps import labelling as sweep_labelling
from pipelines.sweeps import training as sweep_training
from pipelines.sweeps.job import TrainingSweep, checked, trials_at_once
from pipelines.sweeps.labelling import LabellingSweep, judge
from pipelines.sweeps.report import best, entries, picture, table
from pipelines.sweeps.spaces import choices, find_space, paper_columns, points, spaces, swept
from pipelines.sweeps.trial import rounds
from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.labelling.clusters import cluster
from reid_core.labelling.jaccard import jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.quality import label_free_score
from reid_core.labelling.tasks import InProcess
from reid_core.labels import Features
from tests.pipelines.test_end_to_end import TINY
from tests.reference.features import people

NAMES = [(m, s) for m in contract.names() for s in spaces(m)]


def job(method: str = "hcd", preset: str = "demo", **changes: Any) -> TrainingSweep[Any]:
    run = TrainJob(method=contract.load(method).PRESETS[preset].config, name="a")
    return replace(TrainingSweep(run=run, seeds=(1,)), **changes)


def test_a_space_is_found_by_its_name_or_the_beginning_of_it() -> None:
    assert find_space("hcd", "ALPHA_M")[0] == "alpha_m"
    assert find_space("snnet", "symm")[0] == "symmetric"
    for name, message in (
        ("", r"--space is missing; hcd has\n  labelling"),
        ("alpha", "alpha_m or alpha_s"),
        ("no", r"\n  anchors, k +anchors\n"),
        ("no", "may be nothing"),
    ):
        with pytest.raises(UsageError, match=message):
            find_space("hcd", name)
    with pytest.raises(UsageError, match="snnet has no label settings"):
        find_space("snnet", "labelling")


@pytest.mark.parametrize(
    ("method", "name", "field"),
    [
        ("ise", "K", "supports"), ("ise", "lambda_0", "lam0"), ("hcd", "K", "anchors"),
        ("hcd", "H", "levels"), ("hdcpd", "gamma", "gamma"), ("hdcpd", "lambda", "gamma"),
        ("snnet", "sym", "symmetric_weight"), ("snnet", "nh", "neighbour_weight"),
    ],
)  # fmt: skip
def test_the_papers_names_of_spaces(method: str, name: str, field: str) -> None:
    title, space = find_space(method, name)
    assert title == name.lower()
    assert swept(space) == [field]


def test_choices() -> None:
    assert choices("x", tune.grid_search([1, 2])) == [1, 2]
    assert choices("x", tune.choice(["a", "b"])) == ["a", "b"]
    assert choices("x", 0.5) == [0.5]
    expected = [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]
    assert choices("x", tune.quniform(0.4, 0.7, 0.05)) == expected
    assert choices("x", tune.qrandint(2, 8, 2)) == [2, 4, 6, 8]
    assert {type(value) for value in choices("x", tune.qrandint(2, 8, 2))} == {int}
    for domain in (tune.uniform(0, 1), tune.loguniform(0.1, 1)):
        with pytest.raises(UsageError, match="--search random"):
            choices("x", domain)


def test_points_and_what_varies() -> None:
    space = {"a": tune.grid_search([1, 2]), "b": 0.0, "c": tune.grid_search(["x", "y"])}
    assert points(space) == list(product([1, 2], [0.0], ["x", "y"]))
    assert swept(space) == ["a", "c"]
    assert points({"a": tune.choice([1])}) is None


@pytest.mark.parametrize(("method", "name"), NAMES)
def test_every_space_can_be_swept_from_the_published_settings(method: str, name: str) -> None:
    space = find_space(method, name)[1]
    if name == "labelling":
        return
    checked(method, space, job(method, "market1501", metric="mAP"))


def test_the_papers_figures_stand_at_the_points_of_a_space() -> None:
    presets = contract.load("hcd").PRESETS
    space = spaces("hcd")["alpha_m"]
    columns = paper_columns(presets, list(space), points(space) or [])
    assert [column.data for column in columns] == ["d2m", "m2d"]
    found = [columns[0].published[point]["mAP"] for point in points(space) or []]
    assert found == [66.9, 68.0, 69.2, 70.7, 78.9, 80.0]

    presets, space = contract.load("snnet").PRESETS, spaces("snnet")["symmetric"]
    columns = {c.data: c for c in paper_columns(presets, list(space), points(space) or [])}
    assert len(columns["market1501"].published) == 6  # OSNet's, not the few of ResNet-50
    assert columns["market1501"].published[1.0, 0.0]["mAP"] == 50.2
    assert paper_columns(contract.load("hcd").PRESETS, ["levels"], [(1,), (2,)]) == []


@pytest.mark.parametrize(("method", "name"), NAMES)
def test_presets_of_one_column_and_point_never_differ_in_their_figures(
    method: str, name: str
) -> None:
    space = spaces(method)[name]
    presets = contract.load(method).PRESETS
    backwards = dict(reversed(list(presets.items())))
    asked = points(space) or []
    one, two = (
        {c.data: {k: v.get("mAP") for k, v in c.published.items()} for c in paper_columns(p, list(space), asked)}
        for p in (presets, backwards)
    )  # fmt: skip
    assert all(one[data] == two[data] for data in one if len(one[data]) == len(asked))


ROWS = [
    {"alpha_m": alpha, "seed": seed, "round": 4, "label_free": free, "mAP": accuracy}
    for alpha, seed, free, accuracy in (
        (0.9, 1, 0.5, 0.30), (0.9, 2, 0.7, 0.34), (0.1, 1, 0.4, 0.50), (0.1, 2, 0.4, 0.52),
    )
]  # fmt: skip


def test_rows_stand_in_the_order_of_the_grid() -> None:
    sweep = job(seeds=(2, 1))
    space = {"alpha_m": tune.grid_search([0.9, 0.1]), "update": "all"}
    rows = [{**row, "update": "all"} for row in reversed(ROWS)]
    found = sweep_training.in_order(rows, space, sweep)
    assert [(row["alpha_m"], row["seed"]) for row in found] == [
        (0.9, 2), (0.9, 1), (0.1, 2), (0.1, 1),
    ]  # fmt: skip
    assert sweep_training.in_order(rows, {"alpha_m": tune.uniform(0, 1)}, sweep) == rows


def test_the_mean_over_seeds_beside_the_paper() -> None:
    found = entries(ROWS, ["alpha_m"])
    assert [entry.trials for entry in found] == [2, 2]
    assert found[0].measured["label_free"] == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    papers = paper_columns(contract.load("hcd").PRESETS, ["alpha_m"], [(0.1,), (0.9,)])
    lines = table(found, ["alpha_m"], "label_free", papers)
    head, first, second = ([cell.strip() for cell in line.split("|")] for line in lines[:3])
    assert head[:5] == ["alpha_m", "seeds", "rounds", "label-free", "mAP"]
    assert head[5:7] == ["paper d2m mAP", "paper d2m R1"]
    assert first[:7] == ["* 0.9", "2", "4", "0.600 ± 0.141", "32.0 ± 2.8", "78.9", "91.1"]
    assert second[0] == "0.1"
    assert "* best by the label-free score" in lines
    assert not any("test set" in line for line in lines)


def test_a_choice_by_the_test_set_is_marked() -> None:
    found = entries(ROWS, ["alpha_m"])
    lines = table(found, ["alpha_m"], "mAP", [])
    assert lines[2].strip().startswith("* 0.1")
    assert any("of the test set" in line and "no fair figure" in line for line in lines)


def test_stopped_trials_are_not_the_best() -> None:
    short = {"alpha_m": 0.3, "seed": 1, "round": 1, "label_free": 0.9}
    found = entries([*ROWS, short], ["alpha_m"])
    assert best(found, "label_free") == 0
    assert "mAP" not in found[2].measured
    assert best([], "mAP") is None


@pytest.mark.parametrize("keys", [["alpha_m"], ["alpha_m", "update"]])
def test_a_picture_is_written(tmp_path: Path, keys: list[str]) -> None:
    rows = [{**row, "update": "all" if row["seed"] == 1 else "hard"} for row in ROWS]
    path = tmp_path / "a.png"
    papers = paper_columns(contract.load("hcd").PRESETS, ["alpha_m"], [(0.1,), (0.9,)])
    path.write_bytes(picture(entries(rows, keys), keys, papers if len(keys) == 1 else []))
    height, width, _ = imread(path).shape
    assert width > height > 300


def test_a_trial_tells_rounds_that_have_the_metric(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert rounds(str(tmp_path), "label_free") == []
    lines: list[dict[str, Any]] = [
        {"kind": "evaluation", "round": 0, "label_free": 0.1, "mAP": 0.2, "other": 1.0},
        {"kind": "round", "round": 0, "label_free": 0.1, "loss": 3.0},
        {"kind": "quality", "round": 1, "mAP": 0.9},
        {"kind": "round", "round": 1, "label_free": 0.3},
        {"kind": "evaluation", "round": 2, "label_free": None, "mAP": 0.5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = {"round": 0, "label_free": 0.1, "mAP": 0.2}
    assert rounds(str(tmp_path), "label_free") == [first, {"round": 1, "label_free": 0.3}]
    assert rounds(str(tmp_path), "mAP") == [first, {"round": 2, "mAP": 0.5}]


def on(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
    """A cluster of these nodes."""
    for module in (preflight, sweep_job):
        monkeypatch.setattr(
            module, "share_out", lambda workers, *, gpu: divide(nodes, workers, gpu=gpu)
        )


@pytest.mark.parametrize(
    ("nodes", "workers", "trials"),
    [
        ([Node(2)], 1, 1),
        ([Node(32)], 4, 1),
        ([Node(16)] * 4, 1, 3),
        ([Node(8, 1)], 1, 1),
        ([Node(33, 8)], 2, 4),
        ([Node(5.5, 8)], 2, 2),
    ],
)
def test_as_many_trials_as_leave_each_what_it_has_alone(
    nodes: list[Node], workers: int, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, *nodes)
    sweep = job()
    run = replace(sweep.run, workers=workers, gpu=nodes[0].gpus > 0)
    assert trials_at_once(replace(sweep, run=run)) == trials


def test_more_trials_than_fit_are_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, Node(2))
    assert trials_at_once(job(concurrent=2)) == 2
    with pytest.raises(
        UsageError,
        match=r"--concurrent 5: 5 trials of --workers 1 .*--workers 5 does; .* 2 CPUs; .*at most --workers 4",
    ):
        trials_at_once(job(concurrent=5))
    on(monkeypatch, Node(1))
    for trials in (0, 2):
        with pytest.raises(UsageError, match="the nodes have 1 CPUs; add CPUs"):
            trials_at_once(job(concurrent=trials))


@pytest.mark.parametrize(("concurrent", "began", "trials"), [(0, 0, 1), (3, 0, 3), (0, 2, 2)])
def test_nodes_for_all_trials_at_a_time_are_waited_for(
    concurrent: int, began: int, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Node(32))
    asked: list[tuple[int, dict[str, Any]]] = []

    def wait_for_nodes(workers: int, **more: Any) -> Any:
        asked.append((workers, more))
        return divide([Node(32)], workers, gpu=False)

    monkeypatch.setattr(sweep_job, "wait_for_nodes", wait_for_nodes)
    sweep = job(concurrent=concurrent)
    sweep = replace(sweep, run=replace(sweep.run, workers=2, start_s=900))
    assert trials_at_once(sweep, began) == trials
    assert asked == [(2 * trials, {"gpu": False, "start_s": 900})]


def located(data: str, storage: Path, **changes: Any) -> TrainingSweep[Any]:
    """A sweep of these data that can begin."""
    sweep = job(**changes)
    return replace(sweep, run=replace(sweep.run, data=data, storage=str(storage)))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials at a time of every sweep that has begun; none starts Ray, and its one trial tells one round."""
    numbers: list[int] = []

    def tuner(*arguments: Any) -> Any:
        numbers.append(arguments[-1])
        told = {"trial_id": "t", "round": 4, "label_free": 0.5, "mAP": 0.3}
        ended = SimpleNamespace(metrics=told, config={"method": {"alpha_m": 0.1}, "seed": 1})
        return SimpleNamespace(fit=lambda: Trials([ended]))

    monkeypatch.setattr(sweep_training, "ray_session", lambda **_: nullcontext())
    monkeypatch.setattr(sweep_training, "tuner", tuner)
    return numbers


class Trials(list[Any]):
    """What Tune gives back."""

    errors: tuple[Exception, ...] = ()


ALPHA_M = {"alpha_m": tune.grid_search([0.1])}


def test_a_sweep_goes_on_with_as_many_trials_as_it_began_with(
    begun: list[int], small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = located(small_set, tmp_path)
    for nodes in (4, 2, 8):
        on(monkeypatch, *[Node(16)] * nodes)
        sweep_training.run("hcd", "alpha_m", ALPHA_M, sweep)
    assert begun == [3, 3, 3]
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["trials_at_once"] == 3
    assert "trials_at_once" not in saved["identity"]
    with pytest.raises(UsageError, match="--concurrent 2: the saved sweep goes on with 3 trials"):
        sweep_training.run("hcd", "alpha_m", ALPHA_M, replace(sweep, concurrent=2))
    on(monkeypatch, Node(1.5))
    with pytest.raises(
        UsageError,
        match=r"began with 3 trials of --workers 1 .* begin another --name: .* 1\.5 CPUs",
    ):
        sweep_training.run("hcd", "alpha_m", ALPHA_M, sweep)
    assert begun == [3, 3, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"block": 64}, {"eval_every": 5}, {"camera_filter": "none"},
        {"method": replace(job().run.method, steps=7)},
    ],
)  # fmt: skip
def test_what_changes_a_number_of_a_trial_is_another_sweep(
    change: dict[str, Any], begun: list[int], small_set: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    on(monkeypatch, Node(16))
    sweep = located(small_set, tmp_path)
    sweep_training.run("hcd", "alpha_m", ALPHA_M, sweep)
    changed = replace(sweep, run=replace(sweep.run, **change))
    with pytest.raises(UsageError, match="holds a run with another configuration"):
        sweep_training.run("hcd", "alpha_m", ALPHA_M, changed)


def test_what_changes_no_number_is_not_in_the_identity_and_nothing_is_there_twice(
    small_set: str, tmp_path: Path
) -> None:
    sweep = located(small_set, tmp_path, seeds=(1, 2))
    inputs = scan_inputs(small_set, "", "auto", "")
    found = sweep_training.identity("hcd", ALPHA_M, sweep, inputs)
    run = replace(sweep.run, seed=7, workers=2, storage="elsewhere", name="b")
    again = sweep_training.identity("hcd", ALPHA_M, replace(sweep, run=run, concurrent=2), inputs)
    assert found == again == json.loads(json.dumps(found))
    assert found["data"] == inputs.fingerprints
    assert found["sweep"]["seeds"] == [1, 2]
    assert not found.keys() & {"seed", "source", "trials_at_once"}


def test_data_without_a_test_set_gives_no_accuracy(
    begun: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Node(16))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jpg").touch()
    for metric in ("mAP", "rank1"):
        sweep = located(str(tmp_path / "data"), tmp_path, metric=metric)
        with pytest.raises(UsageError, match=rf"--metric {metric}: .*/data has no query with an"):
            sweep_training.run("hcd", "alpha_m", ALPHA_M, sweep)
    assert not begun
    assert not (tmp_path / "a").exists()
    sweep_training.run("hcd", "alpha_m", ALPHA_M, replace(sweep, metric="label_free"))


@pytest.mark.parametrize(
    ("rows", "evaluated"),
    [
        ([("query", 1), ("query", None), ("gallery", None)], True),
        ([("query", None), ("gallery", 1)], False),
        ([("train", 1), ("gallery", 1)], False),
        ([("train", 1), ("query", 1)], False),
    ],
)  # fmt: skip
def test_a_query_with_an_id_and_a_gallery_are_evaluated(
    rows: list[tuple[str, int | None]], evaluated: bool
) -> None:
    split, pid = zip(*rows, strict=True)
    images = pa.table({"split": pa.array(split), "pid": pa.array(pid, pa.int64())})
    assert is_evaluated(images) == evaluated


def test_trials_that_tell_nothing_are_no_result(
    begun: list[int], small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Node(16))
    silent = SimpleNamespace(
        metrics=None, config={"method": {"alpha_m": 0.1}, "seed": 1}, path="x/t"
    )
    fit = SimpleNamespace(fit=lambda: Trials([silent]))
    monkeypatch.setattr(sweep_training, "tuner", lambda *_: fit)
    with pytest.raises(ValueError, match="none of 1 trials told label_free after any round"):
        sweep_training.run("hcd", "alpha_m", ALPHA_M, located(small_set, tmp_path))


def test_optuna_proposes_points_of_the_space_and_goes_on_when_restored(tmp_path: Path) -> None:
    sweep = job(search="optuna")
    space = checked("hcd", find_space("hcd", "training")[1], sweep)

    def searcher() -> Any:
        found = sweep_training.search(sweep, 2)
        assert found.set_search_properties("label_free", "max", {"method": dict(space), "seed": 1})
        return found

    first = searcher()
    for number in range(3):
        point = first.suggest(str(number))["method"]
        replace(sweep.run.method, **point)
        assert point.keys() == space.keys()
        result = {"label_free": number / 10, "round": 2, "training_iteration": 1}
        first.on_trial_complete(str(number), result)
    first.save(str(tmp_path / "searcher"))
    again = searcher()
    again.restore(str(tmp_path / "searcher"))
    assert again.suggest("3") == first.suggest("3") != searcher().suggest("3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "usage: reid sweep METHOD"),
        ("--space training", "usage: reid sweep METHOD"),
        ("nothing", "no method"),
        ("hcd", "--space is missing"),
        ("hcd --space alpha_m --preset no", "no preset 'no'"),
        ("odc --space labelling", "odc has clusters, min_size"),
        ("hcd --space labelling", "--features is missing"),
        ("hcd --space training --search grid", "temperature is drawn from a range"),
        ("hcd --space alpha_m --search optuna", "a space without grids"),
        ("hcd --space training --search optuna --seeds 1 2", "takes one seed"),
        ("hcd --space alpha_m --seeds 1 1", "one occurs twice"),
        ("hcd --space alpha_m --trials 0", "--trials counts from 1"),
        ("moco --space ema", "use --metric mAP"),
        ("hcd --space alpha_m --workers 3", "--workers 3 does not divide"),
    ],
)  # fmt: skip
def test_wrong_use(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_flags_of_both_stages() -> None:
    _, title, space, sweep = parse(
        ["hcd", "--space", "labelling", "--eps", "0.3", "0.5", "--features", "x"]
    )
    assert (title, list(space)) == ("labelling", ["eps", "min_samples", "k1", "k2"])
    assert sweep == LabellingSweep(
        features="x", eps=(0.3, 0.5), min_samples=(2, 3, 4), k1=(20, 30), k2=(3, 6)
    )
    words = "hcd --preset demo --space=alpha_m --seeds 1 2 --method.eps 0.4 --data d --metric mAP"
    _, title, _, training = parse(words.split())
    assert isinstance(training, TrainingSweep)
    assert (training.seeds, training.metric, training.run.data) == ((1, 2), "mAP", "d")
    assert training.run.method.eps == 0.4
    assert training.run.name == "hcd-demo-alpha_m"


SETTINGS = LabellingSweep(eps=(0.4, 0.5, 0.6), min_samples=(2, 4), k1=(10, 20), k2=(3, 12))


@pytest.mark.parametrize("count", [9, 150])
def test_labelling_judges_every_combination_on_one_graph(count: int) -> None:
    feature, ids = people(count), np.arange(count) // 5
    here = InProcess()
    rows = judge(feature, count, ids, SETTINGS, here, here)
    assert len(rows) == 3 * 2 * 3  # k2 = 12 only with k1 = 20
    scores = [row["label_free"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert {"ids_ari_singletons", "stability", "silhouette", "clusters"} <= set(rows[0])
    judged = jaccard_graph(feature, nearest(feature, min(count, 30)), k2=6, eps=0.62)
    for row in rows[:3]:
        settings = {key: row[key] for key in sweep_labelling.SETTINGS}
        label = cluster(Features(image_id=np.arange(count), feature=feature), **settings).label
        assert row["clusters"] == label.max() + 1
        assert row["label_free"] == pytest.approx(label_free_score(judged, label[:, 0]))


def test_ids_change_nothing_but_their_columns() -> None:
    feature, here = people(60), InProcess()
    one = judge(feature, 60, None, SETTINGS, here, here)
    two = judge(feature, 60, np.arange(60) // 3, SETTINGS, here, here)
    for row, other in zip(one, two, strict=True):
        np.testing.assert_equal(row, {k: v for k, v in other.items() if not k.startswith("ids_")})
    assert not any("ids" in line for line in sweep_labelling.table(one))
    assert any("nothing is chosen by them" in line for line in sweep_labelling.table(two))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": (0.5, 0.99)}, "below 0.98"),
        ({"eps": (0.5, 1.5)}, "eps = 1.5"),
        ({"k1": (2,), "k2": (3,)}, "k2 = 3; must be from 1 to k1 = 2"),
        ({"min_samples": (0,)}, "min_samples = 0"),
        ({"k2": ()}, "--k2 without a value"),
        ({"features": "no.parquet"}, "no such file"),
    ],
)
def test_label_settings_that_cannot_be(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "f.parquet").touch()
    sweep = replace(SETTINGS, features=str(tmp_path / "f.parquet"))
    with pytest.raises(UsageError, match=message):
        sweep_labelling.run(replace(sweep, **changes))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_labelling_as_ray_tasks_writes_the_table(tmp_path: Path) -> None:
    feature = people(80)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(feature.reshape(-1)), feature.shape[1])
    pq.write_table(pa.table({"image_id": np.arange(80), "feature": rows}), tmp_path / "f.parquet")
    words = (
        f"sweep ise --space labelling --features {tmp_path}/f.parquet --out {tmp_path}/o.parquet"
    )
    assert main([*words.split(), "--eps", "0.5", "0.6"]) == 0
    written = pq.read_table(tmp_path / "o.parquet").to_pylist()
    expected = judge(
        feature, 80, None,
        LabellingSweep(eps=(0.5, 0.6), min_samples=(2, 4, 8), k1=(20, 30), k2=(3, 6)),
        InProcess(), InProcess(),
    )  # fmt: skip
    assert written == expected


def command(data: str, storage: Path, *more: str) -> list[str]:
    """A sweep of two trials."""
    words = f"sweep cluster_contrast --space update --preset demo --data {data} --name s"
    return [*words.split(), "--storage", str(storage), *TINY, *more]


def outcome(storage: Path, number: int) -> list[dict[str, Any]]:
    """The rows after so many rounds, each checked against the run that made it."""
    rows = json.loads((storage / "s" / "result.json").read_text())
    assert [row["update"] for row in rows] == ["all", "hard"]
    for row in rows:
        last = json.loads((storage / "s" / row["trial"] / "result.json").read_text())["last"]
        assert (row["round"], row["mAP"]) == (last["round"], last["mAP"]) == (number, row["mAP"])
    assert imread(storage / "s" / "table.png").any()
    assert "* best by the label-free score" in (storage / "s" / "table.txt").read_text()
    return rows


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("local_ray")
def test_two_trials_at_a_time_and_the_same_command_again(
    small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(small_set, tmp_path, "--concurrent", "2", "--scheduler", "asha", "--grace", "2")
    assert main(words) == 0
    rows = outcome(tmp_path, 2)
    logs = [(tmp_path / "s" / row["trial"] / "log.txt").read_text() for row in rows]
    assert all("1 workers with 1 CPUs" in log for log in logs)  # of four, one and more are room
    assert main(words) == 0  # both have ended
    assert outcome(tmp_path, 2) == rows
    assert main([*words, "--seeds", "2"]) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main([*words, "--concurrent", "99"]) == 2
    assert "--concurrent 99: the saved sweep goes on with 2" in capsys.readouterr().err


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on(small_set: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    settings = ["--rounds", "3", "--method.steps", "60"]  # the last of a flag counts

    def drive(until: Callable[[], bool]) -> int | None:
        """The exit code of the command, which is killed when the condition holds."""
        words = [sys.executable, "-m", "pipelines", *command(small_set, tmp_path, *settings)]
        with log.open("ab") as out, subprocess.Popen(words, stdout=out, stderr=out) as process:
            try:
                end = time.monotonic() + LIMIT_S
                while process.poll() is None and not until():
                    assert time.monotonic() < end, log.read_text()[-2000:]
                    time.sleep(0.2)
                return process.poll()
            finally:
                process.kill()

    def second_is_in_its_last_round() -> bool:  # so that the round before is kept
        ended = list(tmp_path.glob("s/*/result.json"))
        return len(ended) == 1 and len(list(tmp_path.glob("s/*/checkpoints/round-0002"))) == 2

    assert drive(second_is_in_its_last_round) is None
    ended = next(tmp_path.glob("s/*/result.json"))
    then = ended.stat().st_mtime
    assert drive(lambda: False) == 0, log.read_text()[-2000:]
    rows = outcome(tmp_path, 3)
    assert ended.stat().st_mtime == then  # not done again
    resumed = [
        "resumed after round" in (tmp_path / "s" / row["trial"] / "log.txt").read_text()
        for row in rows
    ]
    assert sorted(resumed) == [False, True]
