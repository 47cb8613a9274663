"""SNNet: methods.md 5, its twin, any number of workers, resuming in the middle."""

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reid_core import distributed
from reid_core import method as contract
from reid_core.batch import TARGET, Batch, Domain, Round, Sizes
from reid_core.errors import UsageError
from reid_core.losses.multilabel import mmcl
from reid_core.methods import snnet
from reid_core.methods.snnet import Config, Objective, SgdConfig
from reid_core.models.embedder import build_embedder
from reid_core.seeding import derive
from reid_core.settings import ModelConfig
from reid_core.training import Learner, train_round
from tests.ranks import run_ranks
from tests.reference import snnet as reference

METHOD = contract.load("snnet")
IMAGES, BATCH, ROUNDS = 36, 16, 4  # three steps a round


def settings(precision: str = "fp64", **changes: Any) -> Config:
    config = Config(
        threshold=0.25,
        min_window=4,
        hard_share=0.2,
        multi_label_from=0.25,
        rounds=ROUNDS,
        batch_size=BATCH,
        bn_group=8,
        model=ModelConfig(trunk="tiny", pooling="gem", weights="random", precision=precision),  # type: ignore[arg-type]
    )
    return replace(config, **changes)


def domain(count: int = IMAGES) -> Domain:
    row = torch.arange(count)
    return Domain(image_id=3 * row, camid=0 * row, label=row[:, None], feature=None)


def start(number: int, rounds: int = ROUNDS) -> Round:
    return Round(number=number, rounds=rounds, step=3 * number, target=domain(), source=None)


def share_of(config: Config, number: int) -> Iterator[Batch]:
    """This rank's share of the batches of a round; an image is noise around one of six patterns."""
    g = torch.Generator().manual_seed(0)
    pattern = torch.randn(6, 3, 24, 16, generator=g)
    image = 2 * pattern[torch.arange(IMAGES) % 6] + torch.randn(IMAGES, 3, 24, 16, generator=g)
    share = config.batch_size // distributed.world_size()
    position = distributed.rank() * share + torch.arange(share)
    for rows in contract.batches(METHOD, config, domain(), derive(5, number)):
        row = torch.from_numpy(rows)[position]
        yield Batch(
            image=(image[row],),
            image_id=3 * row,
            row=row,
            camid=0 * row,
            label=row[:, None],
            domain=torch.full_like(row, TARGET),
            position=position,
            seed=derive(6, number),
        )


class Run:
    """All that training consists of, without images on a disk and without Ray."""

    def __init__(self, config: Config, state: bytes = b"") -> None:
        self.config = config
        embedder = build_embedder(config.model, bn_group=config.bn_group, seed=1)
        dtype = next(embedder.parameters()).dtype
        objective = Objective(config, embedder, Sizes(IMAGES, 0, embedder.dim)).to(dtype)
        self.learner = Learner(embedder, objective)
        self.optimizer = contract.optimizer(METHOD, config, embedder, objective)
        self.scheduler = contract.scheduler(METHOD, config, self.optimizer)
        self.history: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
        if state:
            saved = torch.load(io.BytesIO(state), weights_only=True)
            for name, part in self.parts().items():
                part.load_state_dict(saved[name])

    @property
    def objective(self) -> Objective:
        return self.learner.objective  # type: ignore[return-value]

    def parts(self) -> dict[str, Any]:
        return {
            "embedder": self.learner.embedder,
            "objective": self.learner.objective,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def state(self) -> bytes:
        saved = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, saved)
        return saved.getvalue()

    def rounds(self, first: int, end: int, steps: int | None = None) -> "Run":
        for number in range(first, end):
            now = start(number)
            self.objective.begin_round(now)
            self.history += train_round(
                self.learner,
                share_of(self.config, number),
                self.optimizer,
                progress=(number / ROUNDS, (number + 1) / ROUNDS),
                num_steps=steps or contract.num_steps(METHOD, self.config, now),
            )
            self.scheduler.step()
        state = list(self.learner.objective.buffers())  # type: ignore[attr-defined]
        distributed.check_equal_on_ranks(state, "the memory")
        return self

    def result(self) -> dict[str, Any]:
        return {
            "losses": [
                {name: distributed.mean_over_ranks(term) for name, term in terms.items()} | scalars
                for terms, scalars in self.history
            ],
            "weights": self.learner.embedder.state_dict(),
            "memory": self.objective.memory_ND,
            "claims": self.objective.claims.claim_E,
            "claimed_by": self.objective.claims.claimed_by_E,
            "labels": self.objective.labels(),
        }


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


# --- against the equations


def slow_run(config: Config, rounds: int) -> dict[str, Any]:
    run = Run(config)
    embedder = run.learner.embedder.train()
    twin = reference.Twin(config, IMAGES, 256)
    losses = []
    for number in range(rounds):
        mines = number / ROUNDS >= config.multi_label_from
        for _, batch in zip(range(3), share_of(config, number), strict=False):
            row = batch.row.tolist()
            x = embedder(batch.image[0])
            terms = twin.terms(x, row, mines)
            run.optimizer.zero_grad()
            sum(terms.values()).backward()  # type: ignore[union-attr]
            run.optimizer.step()
            twin.update(x, row, config.momentum * number / ROUNDS, mines)
            positives = sum(len(twin.claims[i]) for i in row) / len(row)
            scalars = {"positives": torch.tensor(positives).double()} if mines else {}
            losses.append({k: v.detach() for k, v in terms.items()} | scalars)
        run.scheduler.step()
    keys = [i * IMAGES + j for i, claim in enumerate(twin.claims) for j in claim]
    back = [j * IMAGES + i for i, claim in enumerate(twin.claims) for j in claim]
    return {
        "losses": losses,
        "weights": embedder.state_dict(),
        "memory": twin.memory,
        "claims": torch.tensor(sorted(keys)),
        "claimed_by": torch.tensor(sorted(back)),
        "labels": torch.tensor(reference.components(twin.claims))[:, None],
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "mmcl": {"symmetric_weight": 0.0, "neighbour_weight": 0.0},
    "s": {"neighbour_weight": 0.0},
    "literal": {"force_self": False, "aux_from_start": True},
    "plain": {"loss": "plain_pm1", "optim": SgdConfig(lr=1e-3)},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_slow_twin(changes: dict[str, Any]) -> None:
    config = settings(**changes)
    result = Run(config).rounds(0, 3).result()
    compare(result, slow_run(config, 3), 1e-8)
    last = result["losses"][-1]
    assert 1.5 < last["positives"] < IMAGES / 2, "the case is trivial"
    assert 1 < len(result["labels"].unique()) < IMAGES, "the case is trivial"


def test_total_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 8 with the losses 2.35, 2 and 3 of methods.md 5.7."""
    run = Run(settings())
    run.objective.begin_round(start(1))
    losses = iter(torch.tensor([2.35, 2.0, 3.0]))
    monkeypatch.setattr(run.objective, "_loss", lambda *_: next(losses))
    step = run.objective(run.learner.embedder, next(share_of(run.config, 1)), 0.25)
    assert list(step.terms) == ["base", "symmetric", "neighbour"]
    assert step.total.item() == pytest.approx(2.3958, abs=1e-4)


def claims_by_hand(config: Config) -> Objective:
    """methods.md 5.7, PLM: five images, of which 1 is the nearest to 0."""
    objective = Objective(config, nn.Identity(), Sizes(5, 0, 2))
    objective.memory_ND = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0], [0, -1]])
    claims = [(0, 0), (0, 1), (0, 4), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 3), (4, 4)]
    objective.claims.write(torch.arange(5), torch.tensor(claims))
    return objective


@pytest.mark.parametrize(("force", "want"), [(True, [0, 1, 2]), (False, [1, 2])])
def test_labels_of_others_by_hand(force: bool, want: list[int]) -> None:
    objective = claims_by_hand(settings(force_self=force))
    labels = objective._labels(torch.tensor([0, 1]), mines=True)
    assert labels["symmetric"][0].nonzero()[:, 0].tolist() == [0]
    assert labels["symmetric"][1].nonzero()[:, 0].tolist() == [0, 1, 2]
    assert labels["neighbour"][0].nonzero()[:, 0].tolist() == want


def test_symmetric_claims_give_the_base_loss() -> None:
    """P = P^T and up to date: L_sym = L_base."""
    run = Run(settings()).rounds(0, 2)
    objective, row = run.objective, torch.arange(IMAGES)
    objective.begin_round(start(2))
    base = objective._labels(row, mines=True)["base"]
    both = base | base.T
    objective.claims.write(row, both.nonzero())
    similarity = objective.memory_ND @ objective.memory_ND.T
    symmetric = objective._labels(row, mines=True)["symmetric"]
    assert objective._loss(similarity, symmetric) == objective._loss(similarity, both)


def test_without_weights_it_is_the_baseline_exactly() -> None:
    """Eq. 8 with zero weights is MMCL's loss of the predicted labels, bit for bit, whatever others claim."""
    run = Run(settings(**VARIANTS["mmcl"])).rounds(0, 2)
    batch, objective, config = next(share_of(run.config, 2)), run.objective, run.config
    objective.claims.write(torch.arange(IMAGES), torch.ones(IMAGES, IMAGES).nonzero())
    step = objective(run.learner.embedder, batch, 0.5)
    similarity = step.embedding @ objective.memory_ND.T
    positive = objective._labels(batch.row, mines=True)["base"]
    loss = mmcl(
        similarity,
        positive,
        positive_weight=config.positive_weight,
        hard_share=config.hard_share,
    )
    assert set(step.terms) == {"base"}
    assert torch.equal(step.total, loss.mean())
    assert (positive.sum(dim=1) > 1).any(), "the case is trivial"


# --- the schedule


def mined(config: Config, steps: int) -> list[bool]:
    """For every step of a run whether labels were predicted."""
    objective = Objective(config, nn.Identity(), Sizes(5, 0, 2))
    row = torch.arange(5)
    batch = Batch(
        image=(torch.eye(5, 2),), image_id=row, row=row, camid=row, label=row[:, None],
        domain=0 * row, position=row, seed=0,
    )  # fmt: skip
    learner = Learner(nn.Linear(2, 2), objective)
    adam = torch.optim.SGD(learner.embedder.parameters(), lr=0.0)
    found = []
    for number in range(config.rounds):
        now = Round(number=number, rounds=config.rounds, step=0, target=domain(5), source=None)
        objective.begin_round(now)
        ends = (number / config.rounds, (number + 1) / config.rounds)
        done = train_round(learner, repeat(batch), adam, progress=ends, num_steps=steps)
        found += ["positives" in scalars for _, scalars in done]
    return found


def test_every_image_is_its_own_class_in_the_first_tenth() -> None:
    """60 rounds: multi-labels from the seventh on."""
    assert mined(Config(), 3) == [step >= 6 * 3 for step in range(60 * 3)]


def test_the_weight_of_the_old_row_grows() -> None:
    objective = Objective(Config(), nn.Identity(), Sizes(5, 0, 2))
    for number in range(60):
        objective.begin_round(start(number, rounds=60))
        assert objective.momentum == pytest.approx(0.5 * number / 60)


@pytest.mark.parametrize(("rounds", "first"), [(20, 60), (2, 6), (1, 3)])
def test_the_demo_predicts_labels_from_a_tenth_of_the_steps_on(rounds: int, first: int) -> None:
    demo = replace(snnet.PRESETS["demo"].config, rounds=rounds)
    assert mined(demo, demo.steps).index(True) == first


def test_first_rounds_leave_the_claims_alone() -> None:
    result = Run(settings(multi_label_from=0.5)).rounds(0, 2).result()
    assert result["labels"][:, 0].tolist() == list(range(IMAGES))
    assert all(set(step) == {"base"} for step in result["losses"])


def test_features_wait_until_every_image_was_seen() -> None:
    run = Run(settings())
    assert run.objective.features() is None
    rows = run.rounds(0, 1).objective.features()
    assert rows is not None
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(IMAGES, dtype=rows.dtype))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 36])
def test_a_round_shows_every_image_once(count: int) -> None:
    now = replace(start(0), target=domain(count))
    steps = contract.num_steps(METHOD, settings(), now)
    stream = contract.batches(METHOD, settings(), now.target, seed=0)
    rows = np.concatenate([next(stream) for _ in range(steps)])
    assert len(rows) == steps * BATCH
    assert sorted(rows[:count]) == list(range(count))
    assert rows[count:].tolist() == np.resize(rows[:count], len(rows) - count).tolist()
    other = contract.batches(METHOD, settings(), now.target, seed=1)
    assert count == 1 or next(other).tolist() != rows[:BATCH].tolist()


def test_steps_may_be_given() -> None:
    assert contract.num_steps(METHOD, settings(steps=7), start(0)) == 7
    assert contract.labels_from(METHOD, settings(), 0) == "none"


def test_the_trunk_learns_at_a_tenth_of_the_rate() -> None:
    run = Run(settings())
    new, trunk = run.optimizer.param_groups
    assert (new["lr"], trunk["lr"]) == pytest.approx((0.1, 0.01))
    assert {id(p) for p in trunk["params"]} == {
        id(p) for p in run.learner.embedder.get_submodule("trunk").parameters()
    }
    assert len(new["params"]) + len(trunk["params"]) == len(list(run.learner.embedder.parameters()))
    for group in (new, trunk):
        assert group["nesterov"]
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    for _ in range(30):
        run.optimizer.step()
        run.scheduler.step()
    assert [g["lr"] for g in run.optimizer.param_groups] == pytest.approx([0.01, 0.001])


def test_many_positives_are_told_once_a_round(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(threshold=0.01, min_window=IMAGES)
    with caplog.at_level(logging.WARNING):
        Run(config).rounds(0, 3)
    assert len(caplog.records) == 2
    assert "--method.max-positives" in caplog.text


# --- any number of workers, and resuming

CASES = {"fp64": (10, 1e-8), "fp32": (1, 1e-5)}


def some_steps(precision: str) -> dict[str, Any]:
    run, (steps, _) = Run(settings(precision, multi_label_from=0.0)), CASES[precision]
    return run.rounds(0, 1, steps=steps).result()


def all_cases() -> list[dict[str, Any]]:
    return [some_steps(precision) for precision in CASES]


@pytest.mark.ddp
def test_one_worker_equals_two(tmp_path: Path) -> None:
    (one,), (two, other) = (run_ranks(all_cases, w, tmp_path / str(w)) for w in (1, 2))
    for number, (_, tolerance) in enumerate(CASES.values()):
        compare(one[number], two[number], tolerance)
        compare(two[number], other[number], 0.0)
        assert torch.equal(one[number]["claims"], two[number]["claims"])
    assert one[0]["losses"][-1]["positives"] > 1.5


def test_resuming_changes_no_bit() -> None:
    config = settings("fp32")
    whole = Run(config).rounds(0, ROUNDS)
    state = Run(config).rounds(0, 2).state()
    resumed = Run(config, state).rounds(2, ROUNDS)
    compare(resumed.result() | {"losses": []}, whole.result() | {"losses": []}, 0.0)
    compare({"losses": whole.result()["losses"][-6:]}, {"losses": resumed.result()["losses"]}, 0.0)


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, r"threshold = 1\.0; must be in \(0, 1\), 0\.6 is usual"),
        ({"hard_share": 0.0}, r"hard_share = 0\.0.*0\.01 is usual"),
        ({"momentum": 1.0}, r"momentum = 1\.0.*0\.5 is usual"),
        ({"base_weight": 0.0}, "base_weight"),
        ({"symmetric_weight": -1.0}, "symmetric_weight"),
        ({"min_window": 0}, "min_window"),
        ({"max_positives": -1}, "max_positives"),
        ({"multi_label_from": 1.5}, "multi_label_from"),
        ({"rounds": 0}, "rounds"),
        ({"bn_group": 7}, "bn_group = 7 does not divide batch_size = 128"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Config(**changes)


@pytest.mark.parametrize("changes", [{"lr": 0.0}, {"step_rounds": 0}, {"momentum": 1.0}])
def test_an_optimiser_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"optim\.{next(iter(changes))} = .*usual"):
        SgdConfig(**changes)


def test_presets_name_every_row_of_the_tables() -> None:
    for data in ("market1501", "dukemtmc"):
        names = {f"{table}_{w:g}_{data}" for table in ("sym", "nh") for w in snnet.SYMMETRIC}
        names |= {f"{row}_{data}" for row in ("osnet", "mmcl_r50", "mmcl_osnet", "s")} | {data}
        assert names <= set(snnet.PRESETS)
        assert snnet.PRESETS[f"sym_0.8_{data}"] == replace(
            snnet.PRESETS[f"s_{data}"], about=snnet.PRESETS[f"sym_0.8_{data}"].about
        )
    assert snnet.PRESETS["osnet_market1501"].published["mAP"] == 58.3
    assert snnet.PRESETS["nh_0.2_dukemtmc"].published["rank10"] == 83.0


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("mmcl_osnet_market1501", (45.0, 80.3, 89.9, 93.0)),
        ("sym_0_market1501", (45.0, 80.3, 89.9, 93.0)),
        ("nh_0_market1501", (45.0, 80.3, 89.9, 93.0)),
        ("mmcl_osnet_dukemtmc", (41.9, 66.3, 77.7, 81.1)),  # Table II
        ("sym_0_dukemtmc", (41.9, 66.3, 77.0, 81.5)),  # Table III
        ("nh_0_dukemtmc", (41.9, 66.3, 77.0, 81.5)),  # Table IV
    ],
)
def test_rows_without_labels_of_others(name: str, figures: tuple[float, ...]) -> None:
    """One run in three tables, which print two rank-5 and rank-10 for it on DukeMTMC-reID."""
    assert tuple(snnet.PRESETS[name].published.values()) == figures


@pytest.mark.parametrize(("name", "images"), [("demo", 1200), ("omniglot", 1360)])
def test_hard_negatives_of_small_sets_outnumber_an_identity(name: str, images: int) -> None:
    """With the published share they are the 12 most similar of 1200, of which up to 19 are no negatives."""
    an_identity = 20
    assert snnet.PRESETS[name].config.hard_share * images > 5 * an_identity
