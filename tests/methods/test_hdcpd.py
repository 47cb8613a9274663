"""HDCPD as a method: a slow twin of whole steps, any number of workers, resuming, what its settings refuse."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core import method as contract
from reid_core.batch import SOURCE, TARGET, Batch, Round, Sizes
from reid_core.data.decode import ImageStore
from reid_core.data.loader import BatchLoader, TrainImages
from reid_core.distributed import check_equal_on_ranks
from reid_core.errors import UsageError
from reid_core.methods import hdcpd
from reid_core.models.ema import teacher_of
from reid_core.models.embedder import build_embedder
from reid_core.settings import group_size
from reid_core.training import Learner, reduce_terms, train_round
from tests.methods import small_run
from tests.ranks import run_ranks
from tests.reference import hdcpd as reference
from tests.reference import memory as memory_reference

STEPS = 10
CLUSTER: dict[str, Any] = {"memory": "cluster", "memory_source": "student", "momentum": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "released": {
        "memory_source": "student",
        "local": "none",
        "teacher_temperature": 1.0,
        "distil_mean": "classes",
        "gamma": 1.0,
        "ema_bn": False,
    },
    "hardest_per_identity": {"local": "hardest_per_identity", "teacher_aug": "weak"},
    "centroid": {"contrast": "centroid", "distil": "feature", "ema_ramp": "mean_teacher"},
    "cluster": CLUSTER,
    "legacy_axis": CLUSTER | {"legacy_pd_axis": True},
}


def settings(precision: str, **changes: Any) -> hdcpd.Config:
    """The teacher becomes the student at step 1 and is not far behind it from there on."""
    return small_run.settings("hdcpd", precision, **({"ema": 0.8, "ema_reset": 1} | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    return path


def batches(folder: Path, config: hdcpd.Config, start: Round, steps: int) -> Iterator[Batch]:
    """This rank's share, with the views of the method."""
    names = {TARGET: ("t", small_run.TARGETS)}
    if start.source:
        names[SOURCE] = ("s", small_run.SOURCES)
    store = ImageStore(str(folder), None)
    loader = BatchLoader(
        {d: TrainImages(store, [f"{x}{i:02d}.png" for i in range(n)]) for d, (x, n) in names.items()},
        contract.views(contract.load("hdcpd"), config),
        batch_size=config.batch_size,
        seed=small_run.SEED,
    )  # fmt: skip
    return loader.round(start, small_run.streams("hdcpd", config, start), steps)


def optimizer(config: hdcpd.Config, learner: Learner) -> torch.optim.Optimizer:
    adam = contract.optimizer(
        contract.load("hdcpd"), config, learner.embedder, learner.objective  # type: ignore[arg-type]
    )  # fmt: skip
    if config.model.precision == "fp32":  # Adam's first step is a sign: rounding may turn it around
        return torch.optim.SGD(adam.param_groups[0]["params"], lr=0.1)
    return adam


def run(folder: Path, config: hdcpd.Config, uda: bool, steps: int) -> dict[str, Any]:
    learner, start = small_run.start_round("hdcpd", config, uda=uda)
    learner.objective.begin_round(start)
    shares = batches(folder, config, start, steps)
    rounds = train_round(
        learner, shares, optimizer(config, learner), progress=(0, 0.5), num_steps=steps
    )
    history = [terms for terms, _ in rounds]
    objective: Any = learner.objective
    teacher = objective.embedders().get("teacher")
    check_equal_on_ranks([*objective.buffers(), *objective.parameters()], "memory or teacher")
    return {
        "losses": reduce_terms(history, 0),
        "state": learner.embedder.state_dict(),
        "teacher": teacher.state_dict() if teacher else {},
        "memory": objective.memory_RD,
    }


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert len(one["losses"]) == len(other["losses"])
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=0)
    for part in ("memory", "state", "teacher"):
        torch.testing.assert_close(one[part], other[part], atol=tolerance, rtol=0)


class Twin:
    """The memory of methods.md 4.1 and 4.7 as a table of rows, their classes and the row of an image."""

    def __init__(self, config: hdcpd.Config, start: Round) -> None:
        self.config, target = config, start.target
        label = target.label[:, 0]
        self.sources = 0 if start.source is None else int(start.source.label.max()) + 1
        self.clusters = int(label.max()) + 1
        means = []
        if start.source:
            wanted = list(range(self.sources))
            means = list(
                reference.class_means(start.source.extracted, start.source.label[:, 0], wanted)
            )
        if config.memory == "cluster":
            wanted = list(range(self.clusters))
            means += list(reference.class_means(target.extracted, label, wanted))
            self.classes = torch.arange(len(means))
            self.rows = F.normalize(torch.stack(means), dim=1)
            return
        outliers = iter(range(self.sources + self.clusters, 10**6))
        own = [self.sources + y if y >= 0 else next(outliers) for y in label.tolist()]
        self.classes = torch.tensor([*range(self.sources), *own])
        sources = [F.normalize(torch.stack(means), dim=1)] if means else []
        self.rows = torch.cat([*sources, target.extracted])

    def row_of(self, batch: Batch, b: int) -> int:
        if batch.domain[b] == SOURCE:
            return int(batch.label[b, 0])
        own = batch.row[b] if self.config.memory == "instance" else batch.label[b, 0]
        return self.sources + int(own)

    def prototypes(self, domain: int) -> Tensor:
        first, count = (0, self.sources) if domain == SOURCE else (self.sources, self.clusters)
        return reference.class_means(self.rows, self.classes, list(range(first, first + count)))

    def contrast(self, x: Tensor, own: Tensor) -> Tensor:
        if self.config.contrast == "hardest":
            return reference.hardest_nce(x, own, self.rows, self.classes, self.config.temperature)
        means = reference.class_means(
            self.rows, self.classes, list(range(int(self.classes.max()) + 1))
        )
        tau = self.config.temperature
        return reference.hardest_nce(x, own, means, torch.arange(len(means)), tau)

    def distil(self, x: Tensor, teacher: Tensor, domain: int) -> Tensor:
        config = self.config
        if config.distil == "feature":
            return config.gamma * ((x - teacher) ** 2).sum() / len(x)
        prototypes = self.prototypes(domain)
        distance = (
            reference.batch_axis_distance
            if config.legacy_pd_axis
            else reference.probability_distance
        )
        ts = config.base_temperature * config.student_temperature
        tt = config.base_temperature * config.teacher_temperature
        count = len(prototypes) if config.distil_mean == "classes" else len(x)
        return config.gamma * distance(x, teacher, prototypes, ts, tt).sum() / count

    def terms(self, x: Tensor, teacher: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        own = self.classes[[self.row_of(batch, b) for b in range(len(x))]]
        for name, domain in {"target": TARGET, "source": SOURCE}.items():
            here = batch.domain == domain
            if not here.any():
                continue
            terms[f"global_{name}"] = self.contrast(x[here], own[here]).mean()
            if self.config.local != "none":
                losses = reference.batch_nce(
                    x[here],
                    own[here],
                    batch.image_id[here],
                    self.config.local_temperature,
                    self.config.local,
                )
                paired = [loss for loss in losses if loss is not None]
                terms[f"local_{name}"] = torch.stack(paired).mean() if paired else x.sum() * 0
            terms[f"distil_{name}"] = self.distil(x[here], teacher[here], domain)
        return terms

    def update(self, feature: Tensor, batch: Batch) -> None:
        row = torch.tensor([self.row_of(batch, b) for b in range(len(feature))])
        cluster = self.config.memory == "cluster"
        move = memory_reference.update_hardest if cluster else memory_reference.update_in_order
        self.rows = move(self.rows, row, feature.detach(), self.config.momentum)


def copy_state(network: Any, names: str) -> dict[str, Tensor]:
    return {n: x.clone() for n, x in network.state_dict().items() if names in n}


def slow_twin(folder: Path, config: hdcpd.Config, uda: bool, steps: int) -> dict[str, Any]:
    """methods.md 4.4 with loops: one process, whole batches."""
    learner, start = small_run.start_round("hdcpd", config, uda=uda)
    embedder, twin = learner.embedder.train(), Twin(config, start)
    teacher = teacher_of(embedder, own_statistics=True).train()
    adam = torch.optim.Adam(
        [p for p in embedder.parameters() if p.requires_grad], lr=3.5e-4, weight_decay=5e-4
    )
    weights = reference.ema_weights(steps, config.ema, config.ema_ramp, config.ema_reset)
    losses = []
    for weight, batch in zip(weights, batches(folder, config, start, steps), strict=True):
        x = embedder(batch.image[0])
        kept = copy_state(teacher, "running") if config.ema_bn else {}
        q = teacher(batch.image[1])
        teacher.load_state_dict(kept, strict=False)
        terms = twin.terms(x, q, batch)
        adam.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        adam.step()
        twin.update(q if config.memory_source == "teacher" else x, batch)
        student = embedder.state_dict()
        followed = [n for n, _ in embedder.named_parameters()]
        followed += [n for n in student if "running" in n] if config.ema_bn else []
        old = teacher.state_dict()
        mean = {n: weight * old[n] + (1 - weight) * student[n] for n in followed}
        teacher.load_state_dict(mean, strict=False)
        losses.append({k: v.item() for k, v in terms.items()})
    return {
        "losses": losses,
        "state": embedder.state_dict(),
        "teacher": teacher.state_dict(),
        "memory": twin.rows,
    }


@pytest.mark.parametrize(
    ("variant", "uda"),
    [
        ("recommended", False),
        ("recommended", True),
        ("released", True),
        ("hardest_per_identity", False),
        ("centroid", True),
        ("cluster", True),
        ("legacy_axis", False),
    ],
)
def test_equals_the_slow_twin(folder: Path, variant: str, uda: bool) -> None:
    config = settings("fp64", **VARIANTS[variant])
    compare(run(folder, config, uda, 4), slow_twin(folder, config, uda, 4), 1e-8)


CASES = [
    (variant, uda, precision)
    for variant in VARIANTS
    for uda in (False, True)
    for precision in ("fp64", "fp32")
]


def run_all(folder: Path) -> list[dict[str, Any]]:
    """Every case; in one function, so that each rank starts its process only once."""
    return [
        run(folder, settings(precision, **VARIANTS[v]), uda, STEPS if precision == "fp64" else 1)
        for v, uda, precision in CASES
    ]


@pytest.fixture(scope="module")
def one_and_two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    ranks = tmp_path_factory.mktemp("ranks")
    return [run_ranks(run_all, world, ranks / str(world), folder) for world in (1, 2)]


@pytest.mark.ddp
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0]}-{'uda' if case[1] else 'usl'}-{case[2]}"
)
def test_one_worker_equals_two(one_and_two: list[list[Any]], case: tuple[str, bool, str]) -> None:
    (one,), (two, other) = one_and_two
    number = CASES.index(case)
    compare(one[number], two[number], 1e-8 if case[2] == "fp64" else 1e-5)
    assert torch.equal(two[number]["memory"], other[number]["memory"])


def second_round(start: Round, config: hdcpd.Config, steps: int) -> Round:
    """Other labels; features only where the round extracts them."""
    extracted = hdcpd.labels_from(config, 1) == "extracted"
    target = replace(
        start.target,
        label=start.target.label.roll(3, dims=0),
        feature=start.target.feature if extracted else None,
    )
    source = start.source and replace(
        start.source, feature=start.source.feature if extracted else None
    )
    return replace(start, number=1, step=steps, target=target, source=source)


@pytest.mark.parametrize("variant", ["recommended", "released", "cluster"])
def test_resumes_bit_equal(folder: Path, variant: str) -> None:
    """Round 1 of a run that goes on equals round 1 of a new process that loads the state."""
    config, steps = settings("fp32", **VARIANTS[variant]), 4

    def begin() -> tuple[Learner, Round, torch.optim.Optimizer]:
        learner, start = small_run.start_round("hdcpd", config, uda=True)
        return learner, start, optimizer(config, learner)

    def train(learner: Learner, start: Round, sgd: torch.optim.Optimizer) -> None:
        learner.objective.begin_round(start)
        shares = batches(folder, config, start, steps)
        for _ in train_round(learner, shares, sgd, progress=(0, 0.5), num_steps=steps):
            pass

    def state(learner: Learner, sgd: torch.optim.Optimizer) -> list[dict[str, Any]]:
        objective: Any = learner.objective
        return [x.state_dict() for x in (learner.embedder, objective, sgd)]

    learner, start, sgd = begin()
    train(learner, start, sgd)
    saved = folder / f"{variant}.pt"
    torch.save(state(learner, sgd), saved)
    train(learner, second_round(start, config, steps), sgd)

    other, _, other_sgd = begin()
    objective: Any = other.objective
    for module, loaded in zip(
        (other.embedder, objective, other_sgd), torch.load(saved), strict=True
    ):
        module.load_state_dict(loaded)
    train(other, second_round(start, config, steps), other_sgd)
    for one, two in zip(state(learner, sgd), state(other, other_sgd), strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_baseline_with_the_students_memory_is_the_hybrid_memory(folder: Path) -> None:
    """Table VIII row 1 without a teacher: same weights and memory, term by term."""
    baseline = settings("fp64", **hdcpd.BASELINE, memory_source="student")
    hybrid = small_run.settings("hybrid_memory", "fp64", momentum=baseline.momentum)
    one, two = (
        run(folder, baseline, True, 5),
        small_run.run(folder, "hybrid_memory", hybrid, True, 5),
    )
    torch.testing.assert_close(one["state"], two["state"], atol=0, rtol=0)
    assert torch.equal(one["memory"], two["memory"])
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert {k.removeprefix("global_"): v for k, v in a.items()} == b
    assert not one["teacher"]


def test_hardest_rows_of_a_cluster_memory_are_its_centroids(folder: Path) -> None:
    one, two = (
        run(folder, settings("fp64", **CLUSTER, contrast=contrast), False, 3)
        for contrast in ("hardest", "centroid")
    )
    compare(one, two, 1e-12)


def objective_of(config: hdcpd.Config, uda: bool = False) -> tuple[Any, Round, Any]:
    learner, start = small_run.start_round("hdcpd", config, uda=uda)
    return learner.objective, start, learner.embedder


@pytest.mark.parametrize("clusters", [0, 1])
def test_trains_on_singletons_without_distillation(folder: Path, clusters: int) -> None:
    """No two clusters to tell apart: L_S = 0; all images their own class; L_B has no query without clusters."""
    config = settings("fp32")
    objective, start, embedder = objective_of(config)
    label = torch.full_like(start.target.label, -1)
    label[:6] = clusters - 1
    start = replace(start, target=replace(start.target, label=label))
    objective.begin_round(start)
    batch = next(batches(folder, config, start, 1))
    step = objective(embedder.train(), batch, 0.0)
    assert step.terms["distil_target"] == 0
    if not clusters:
        assert step.terms["local_target"] == 0
    step.total.backward()
    assert all(p.grad.isfinite().all() for p in embedder.parameters() if p.grad is not None)


@pytest.mark.parametrize("clusters", [0, 1])
def test_cluster_memory_needs_two_clusters(clusters: int) -> None:
    objective, start, _ = objective_of(settings("fp32", **CLUSTER))
    label = torch.full_like(start.target.label, clusters - 1)
    with pytest.raises(ValueError, match=f"{clusters} clusters: nothing to contrast"):
        objective.begin_round(replace(start, target=replace(start.target, label=label)))


def test_outliers_have_no_prototype() -> None:
    objective, start, _ = objective_of(settings("fp32"), uda=True)
    objective.begin_round(start)
    feature, label = start.target.extracted, start.target.label[:, 0]
    want = reference.class_means(feature, label, list(range(small_run.CLUSTERS)))
    torch.testing.assert_close(objective._prototypes(TARGET), want)
    assert len(objective._prototypes(SOURCE)) == small_run.CLASSES


def test_memory_is_filled_once_and_read_by_clustering() -> None:
    config = settings("fp32")
    objective, start, _ = objective_of(config)
    objective.begin_round(start)
    assert torch.equal(objective.features(), start.target.extracted)
    other = replace(start.target, feature=-start.target.extracted)
    objective.begin_round(replace(start, number=1, target=other))
    assert torch.equal(objective.features(), start.target.extracted)


def test_labels_come_from_the_memory_every_few_rounds() -> None:
    sources = [hdcpd.labels_from(hdcpd.Config(cluster_every=2), n) for n in range(5)]
    assert sources == ["extracted", "keep", "memory", "keep", "memory"]
    assert [hdcpd.labels_from(hdcpd.Config(), n) for n in range(3)] == [
        "extracted",
        "memory",
        "memory",
    ]
    cluster = hdcpd.Config(memory="cluster")
    assert {hdcpd.labels_from(cluster, n) for n in range(3)} == {"extracted"}


def test_views() -> None:
    strong = hdcpd.Config().images
    assert hdcpd.views(hdcpd.Config()) == (strong, strong)
    student, teacher = hdcpd.views(hdcpd.Config(teacher_aug="weak"))
    assert student == strong
    assert teacher == replace(strong, erase=0.0)
    assert hdcpd.views(hdcpd.Config(distil="none", memory_source="student")) == (strong,)


def test_teacher_is_evaluated_and_not_trained() -> None:
    objective, _, embedder = objective_of(settings("fp32"))
    teacher = objective.embedders()["teacher"]
    assert not any(p.requires_grad for p in objective.parameters())
    image = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher.eval()(image), embedder.eval()(image))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"instances": 1}, "instances = 1.*16 is"),
    ({"local_temperature": 0.0}, "local_temperature = 0.0.*0.6 is usual"),
    ({"teacher_temperature": -1.0}, "teacher_temperature = -1.0.*0.5 is usual"),
    ({"gamma": -0.1}, "gamma = -0.1.*0.1 to 0.5"),
    ({"ema": 1.5}, "ema = 1.5.*0.999 is usual"),
    ({"ema_reset": -1}, "ema_reset = -1.*49 is usual"),
    ({"cluster_every": 0}, "cluster_every = 0.*1 or 2 is usual"),
    ({"cluster_every": 2, "memory": "cluster"}, "cluster_every = 2: a cluster memory is new"),
    ({"eps": 1.5}, "eps = 1.5"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hdcpd.Config(**changes)


def test_one_image_an_identity_without_the_local_contrast() -> None:
    assert hdcpd.Config(instances=1, local="none").instances == 1


def test_every_row_is_a_preset() -> None:
    sets = ("market1501", "dukemtmc", "msmt17", "personx")
    rows = {f"viii_{n}_{data}" for n in range(1, 6) for data in sets[:2]}
    rows |= {f"{name}_{data}" for name in ("cc", "cc_pd") for data in sets}
    rows |= {f"ix_{name}_d2m" for name in ("baseline", "l2g", "baseline_pd", "full")}
    rows |= {
        f"xi_gamma_{gamma}_market1501" for gamma in ("0", "0.1", "0.2", "0.3", "0.5", "1", "1.5")
    }
    rows |= {*sets, "d2m", "m2d", "x_meanteacher_market1501", "paper", "released"}
    assert set(hdcpd.PRESETS) == rows | {"demo", "omniglot"}
    assert all(len(hdcpd.PRESETS[name].published) == 4 for name in rows)


def test_rows_that_are_one_setting_are_equal() -> None:
    """Table VIII row 5 is the final setting; its row 3 differs from gamma 0 in Table XI by a zero term."""
    presets = {name: preset.config for name, preset in hdcpd.PRESETS.items()}
    assert (
        presets["viii_5_market1501"] == presets["market1501"] == presets["xi_gamma_0.2_market1501"]
    )
    assert presets["xi_gamma_0_market1501"] == replace(
        presets["viii_3_market1501"], distil="probability", gamma=0.0
    )


@pytest.mark.parametrize("name", ["demo", "omniglot"])
def test_small_presets_build(name: str) -> None:
    config = hdcpd.PRESETS[name].config
    embedder = build_embedder(config.model, bn_group=group_size(config))
    assert "teacher" in hdcpd.Objective(config, embedder, Sizes(10, 0, embedder.dim)).embedders()
