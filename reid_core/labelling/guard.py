"""What is wrong with the labels of a round, and what to do then. Shares are of all images."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from reid_core.labels import Labels
from reid_core.settings import check_ranges

EPS_STEP = 0.05
EPS_LEAST, EPS_MOST = 0.2, 0.8  # how far eps is moved
WIDER = "raise --method.eps or lower --method.min-samples"
NARROWER = "lower --method.eps or raise --method.min-samples"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What a round's labels may look like, and what to do otherwise; no published run meets the default limits."""

    policy: Literal["stop", "warn", "reuse-last", "widen-eps"] = "warn"
    """Beyond a limit stop, warn, take the labels of the last round, or cluster again with eps 0.05 up or down."""
    largest: float = 0.5
    """Share of all images that one cluster may hold, in (0, 1]."""
    outliers: float = 0.95
    """Share of all images that may be outliers, in (0, 1]; published runs start with up to 0.88."""
    jump: float = 20.0
    """Factor by which the number of clusters may change from one round to the next, above 1."""

    def __post_init__(self) -> None:
        check_ranges(
            vars(self),
            ("largest", 0 < self.largest <= 1, "a share in (0, 1], 0.5 is usual, 1 allows all"),
            ("outliers", 0 < self.outliers <= 1, "a share in (0, 1], 0.95 is usual, 1 allows all"),
            ("jump", self.jump > 1, "a factor above 1, 20 is lenient"),
            prefix="guard.",
        )


class Fault(NamedTuple):
    """One thing that is wrong with labels."""

    code: int  # the metric ``guard``: 1 no clusters, 2 largest, 3 outliers, 4 jump
    reason: str  # a sentence: what is wrong, what to change
    eps_step: float  # what may mend it: EPS_STEP or -EPS_STEP


def find_fault(labels: Labels, previous: Labels | None, guard: Guard) -> Fault | None:
    """The first thing that is wrong with ``labels``, if any; O(1), it only reads their ``metrics``.

    Args:
        labels: of this round.
        previous: of the round before, if any.
        guard: the limits.
    """
    now = labels.metrics
    before = previous.metrics if previous else now
    if now["clusters"] == 0:
        return Fault(1, f"no clusters, all images are outliers; {WIDER}", EPS_STEP)
    if now["largest"] > guard.largest:
        reason = f"one cluster holds {now['largest']:.1%} of the images; {NARROWER}"
        return Fault(2, reason, -EPS_STEP)
    if now["outliers"] > guard.outliers:
        return Fault(3, f"{now['outliers']:.1%} of the images are outliers; {WIDER}", EPS_STEP)
    factor = now["clusters"] / max(before["clusters"], 1)
    if max(factor, 1 / factor) > guard.jump:
        wider = now["outliers"] > before["outliers"]
        reason = (
            f"{now['clusters']:.0f} clusters after {before['clusters']:.0f} in the round before, "
            f"outliers {now['outliers']:.1%} after {before['outliers']:.1%}; "
            f"{WIDER if wider else NARROWER}"
        )
        return Fault(4, reason, EPS_STEP if wider else -EPS_STEP)
    return None


def guarded_labels(
    assign: Callable[[Any], Labels],
    config: Any,
    previous: Labels | None,
    guard: Guard,
    name: str = "labels",
) -> Labels:
    """The labels to train a round on.

    Args:
        assign: from a Config to labels; called again for each other ``eps``.
        config: of the method; it has ``eps`` where the policy is ``widen-eps``.
        previous: the labels of the round before, if any.
        guard: the limits and the policy.
        name: of these labels, for warnings.

    Returns:
        Labels with the metrics ``guard`` (0, or the code of what was first found wrong) and ``eps``.

    Raises:
        ValueError: something is wrong and the policy stops, or has nothing left to try.
    """
    labels = assign(config)
    fault = find_fault(labels, previous, guard)
    if fault is None:
        return _noted(labels, config, 0)
    if guard.policy == "reuse-last":
        return _reused(labels, previous, fault, name)
    if guard.policy == "widen-eps":
        return _with_other_eps(assign, config, previous, guard, fault, name)
    if guard.policy == "stop":
        raise ValueError(fault.reason)
    logger.warning("%s: %s", name, fault.reason)
    return _noted(labels, config, fault.code)


def _reused(refused: Labels, previous: Labels | None, fault: Fault, name: str) -> Labels:
    """The previous labels; the label-free score stays the refused ones', which judges the present weights."""
    if previous is None:
        raise ValueError(f"{fault.reason} (the first round has no earlier labels to reuse)")
    logger.warning("%s: %s; those of the round before are used again", name, fault.reason)
    used = {key: value for key, value in previous.metrics.items() if key != "label_free"}
    return replace(previous, metrics=refused.metrics | used | {"guard": float(fault.code)})


def _with_other_eps(
    assign: Callable[[Any], Labels],
    config: Any,
    previous: Labels | None,
    guard: Guard,
    fault: Fault,
    name: str,
) -> Labels:
    code, step = fault.code, fault.eps_step
    while EPS_LEAST <= (eps := round(config.eps + step, 6)) <= EPS_MOST:
        logger.warning("%s: %s; clustering again with eps = %g", name, fault.reason, eps)
        config = replace(config, eps=eps)
        labels = assign(config)
        found = find_fault(labels, previous, guard)
        if found is None:
            return _noted(labels, config, code)
        fault = found
        if fault.eps_step != step:  # one step too small, the next too large
            break
    raise ValueError(f"{fault.reason} (eps = {config.eps:g} was the last that widen-eps tried)")


def _noted(labels: Labels, config: Any, code: int) -> Labels:
    eps = {"eps": config.eps} if hasattr(config, "eps") else {}
    return replace(labels, metrics=labels.metrics | eps | {"guard": float(code)})
