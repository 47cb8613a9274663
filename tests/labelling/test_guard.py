import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from reid_core.errors import UsageError
from reid_core.labelling.guard import EPS_STEP, Guard, find_fault, guarded_labels
from reid_core.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Config:
    eps: float = 0.6


def labels(clusters: float = 100, outliers: float = 0.3, largest: float = 0.02) -> Labels:
    return Labels(
        image_id=np.arange(3),
        label=np.full((3, 1), clusters),
        is_core=np.ones((3, 1), bool),
        confidence=np.ones((3, 1), np.float32),
        metrics={
            "clusters": clusters,
            "outliers": outliers,
            "largest": largest,
            "label_free": 1 - outliers,
        },
    )


GOOD, NONE = labels(), labels(0, 1.0, 0.0)
ONE, FEW = labels(3, 0.1, 0.8), labels(30, 0.97, 0.01)


@pytest.mark.parametrize(
    ("now", "before", "words"),
    [
        (NONE, GOOD, ["no clusters", "raise --method.eps"]),
        (ONE, None, ["one cluster holds 80.0%", "lower --method.eps"]),
        (FEW, None, ["97.0% of the images are outliers", "raise --method.eps"]),
        (labels(4, 0.9), GOOD, ["4 clusters after 100", "90.0% after 30.0%", "raise"]),
        (labels(4, 0.1), GOOD, ["4 clusters after 100", "10.0% after 30.0%", "lower"]),
        (labels(2001, 0.1), GOOD, ["2001 clusters after 100", "lower"]),
    ],
)
def test_each_fault_says_what_to_change(
    now: Labels, before: Labels | None, words: list[str]
) -> None:
    fault = find_fault(now, before, Guard())
    assert fault
    for word in words:
        assert word in fault.reason
    assert (fault.eps_step == EPS_STEP) == ("raise --method.eps" in fault.reason)
    assert abs(fault.eps_step) == EPS_STEP


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (GOOD, None),
        (labels(429, 0.75, 0.01), labels(60, 0.88, 0.05)),  # how published runs begin
        (labels(10, 0.95, 0.5), None),  # at the limits
        (labels(5), GOOD),
        (labels(2000), GOOD),
    ],
)
def test_sound_labels(now: Labels, before: Labels | None) -> None:
    assert find_fault(now, before, Guard()) is None


def test_the_limits_are_settings() -> None:
    assert find_fault(GOOD, None, Guard(outliers=0.2))
    assert find_fault(GOOD, None, Guard(largest=0.01))
    assert find_fault(GOOD, labels(40), Guard(jump=2))
    assert find_fault(ONE, None, Guard(largest=1)) is None
    assert find_fault(FEW, None, Guard(outliers=1)) is None


@pytest.mark.parametrize("wrong", [{"largest": 0.0}, {"outliers": 1.1}, {"jump": 1.0}])
def test_limits_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"guard.{next(iter(wrong))}"):
        Guard(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["stop", "warn", "reuse-last", "widen-eps"])
def test_no_policy_touches_sound_labels(policy: str, caplog: pytest.LogCaptureFixture) -> None:
    found = guarded_labels(lambda _: GOOD, Config(), GOOD, Guard(policy=policy))  # type: ignore[arg-type]
    assert found.metrics == GOOD.metrics | {"guard": 0, "eps": 0.6}
    assert found.label is GOOD.label
    assert not caplog.records


def test_stop() -> None:
    with pytest.raises(ValueError, match=r"outliers; raise --method\.eps"):
        guarded_labels(lambda _: FEW, Config(), GOOD, Guard(policy="stop"))


CODES = [(NONE, 1), (ONE, 2), (FEW, 3), (labels(2001), 4)]


@pytest.mark.parametrize(("wrong", "code"), CODES)
def test_warn_goes_on(caplog: pytest.LogCaptureFixture, wrong: Labels, code: int) -> None:
    found = guarded_labels(lambda _: wrong, Config(), GOOD, Guard(), "round 7")
    assert found.metrics == wrong.metrics | {"guard": code, "eps": 0.6}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("round 7: ")


@pytest.mark.parametrize(("wrong", "code"), CODES[:3])
def test_reuse_last(caplog: pytest.LogCaptureFixture, wrong: Labels, code: int) -> None:
    last = guarded_labels(lambda _: GOOD, Config(eps=0.5), None, Guard())
    found = guarded_labels(lambda _: wrong, Config(), last, Guard(policy="reuse-last"))
    assert found.label is last.label
    score = {"label_free": wrong.metrics["label_free"]}  # of the present weights
    assert found.metrics == GOOD.metrics | score | {"guard": code, "eps": 0.5}
    assert "those of the round before are used again" in caplog.text
    with pytest.raises(ValueError, match="no earlier labels"):
        guarded_labels(lambda _: wrong, Config(), None, Guard(policy="reuse-last"))


def by_eps(
    right: float, low: Labels, high: Labels
) -> tuple[Callable[[Config], Labels], list[float]]:
    """Labels that are sound within 0.01 of ``right``, ``low`` below and ``high`` above; the eps tried."""
    tried: list[float] = []

    def assign(config: Config) -> Labels:
        tried.append(config.eps)
        if abs(config.eps - right) < 0.01:
            return GOOD
        return low if config.eps < right else high

    return assign, tried


@pytest.mark.parametrize(
    ("right", "expected", "code"),
    [(0.7, [0.6, 0.65, 0.7], 3), (0.45, [0.6, 0.55, 0.5, 0.45], 2)],
)
def test_eps_is_moved_until_the_labels_are_sound(
    right: float, expected: list[float], code: int
) -> None:
    assign, tried = by_eps(right, low=FEW, high=ONE)
    found = guarded_labels(assign, Config(), None, Guard(policy="widen-eps"))
    assert tried == expected
    assert found.metrics == GOOD.metrics | {"guard": code, "eps": right}


@pytest.mark.parametrize(
    ("assign", "last", "words"),
    [
        (lambda _: NONE, 0.8, "no clusters"),
        (lambda _: ONE, 0.2, "one cluster"),
        (by_eps(0.625, low=NONE, high=ONE)[0], 0.65, "one cluster"),  # between two steps
    ],
)
def test_eps_is_not_moved_for_ever(assign: Callable, last: float, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{words}.*eps = {last} was the last"):
        guarded_labels(assign, Config(), None, Guard(policy="widen-eps"))


def test_eps_beyond_the_range_is_left_alone() -> None:
    with pytest.raises(ValueError, match=r"eps = 0\.9 was the last"):
        guarded_labels(lambda _: NONE, Config(eps=0.9), None, Guard(policy="widen-eps"))


def test_a_method_without_eps() -> None:
    found = guarded_labels(lambda _: GOOD, object(), None, Guard())
    assert found.metrics == GOOD.metrics | {"guard": 0}
