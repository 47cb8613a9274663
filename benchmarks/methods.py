"""All methods on one set with the same budget and several seeds: a table of what each one learnt.

``python -m benchmarks.methods --data synthetic --storage runs/methods`` draws the synthetic set and trains every
method by its preset ``demo``; with ``--data FOLDER``, Omniglot in Market layout, by its preset ``omniglot``. Rounds,
steps and batch size are the same for all. Each run makes the rounds of ``reid train`` in this process, without Ray
(``--local``), and one that has finished in ``--storage`` is not repeated: the same command goes on where it
stopped. After a change of the code or the presets give another ``--storage``.

Accuracies are of the test identities, before the first step and after the last one. ARI (outliers are clusters of
their own) and purity (of the clustered images) are of the last weights' labels, in per cent as well; clusters are those
of the last round; a step is the median over rounds, with its share of reading images and building the memory. Mean and
standard deviation over seeds. A note says where a seed ended below its start, and what an EMA teacher gave.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.cli import main as reid
from pipelines.results.saved_run import SavedRun
from reid_core import method as contract
from reid_core.data.datasets import synthetic

BASELINE = "cluster_contrast"
COLUMNS = {
    "mAP first": 1,
    "mAP last": 1,
    "gain": 1,
    "R1 first": 1,
    "R1 last": 1,
    "ARI": 1,
    "purity": 1,
    "clusters": 0,
    "ms a step": 0,
}
"""Decimals of each; ``gain`` is the last mAP minus that of the baseline with the same seed."""
logger = logging.getLogger(__name__)

Outcome = dict[str, float]


def read(run: Path) -> Outcome:
    """What a finished run left, by column; a column is missing where the run could not know it."""
    saved = SavedRun.open(str(run))
    result, steps = saved.result, saved.job["method"]["steps"]
    assert result, f"{run} has not ended"
    last = {kind: saved.of_kind(kind)[-1] for kind in ("round", "evaluation")}
    quality = (saved.of_kind("quality") or [{}])[-1]
    train_s = statistics.median(e["seconds_train"] for e in saved.of_kind("round"))
    known = {
        "mAP first": result["first"]["mAP"],
        "mAP last": result["last"]["mAP"],
        "R1 first": result["first"]["rank1"],
        "R1 last": result["last"]["rank1"],
        "ARI": quality.get("ari_singletons"),
        "purity": quality.get("purity_clustered"),
        "teacher": last["evaluation"].get("mAP_teacher"),
    }
    shares = {name: 100 * value for name, value in known.items() if value is not None}
    return shares | {"clusters": last["round"]["clusters"], "ms a step": 1e3 * train_s / steps}


def with_gain(outcomes: dict[str, dict[int, Outcome]]) -> dict[str, dict[int, Outcome]]:
    """Outcomes by method and seed, with ``gain`` where the baseline has the seed too."""
    baseline = {seed: one["mAP last"] for seed, one in outcomes.get(BASELINE, {}).items()}
    return {
        name: {
            seed: one | ({"gain": one["mAP last"] - baseline[seed]} if seed in baseline else {})
            for seed, one in seeds.items()
        }
        for name, seeds in outcomes.items()
    }


def table(outcomes: dict[str, dict[int, Outcome]], seeds: int) -> list[str]:
    """Markdown: a row a method, best last mAP first; those without a finished run at the end.

    Args:
        outcomes: by method and seed.
        seeds: how many each should have.
    """
    found = with_gain(outcomes)
    accuracy = {
        name: statistics.mean(one["mAP last"] for one in runs.values())
        for name, runs in found.items()
        if runs
    }
    order = sorted(found, key=lambda name: -accuracy.get(name, -1.0))
    rows = [_row(name, list(found[name].values()), seeds) for name in order]
    head = [["method", *COLUMNS, "note"], ["---", *["---:"] * len(COLUMNS), "---"]]
    return [f"| {' | '.join(row)} |" for row in head + rows]


def _row(name: str, runs: Sequence[Outcome], seeds: int) -> list[str]:
    return [name, *(_cell(runs, *column) for column in COLUMNS.items()), _note(runs, seeds)]


def _cell(runs: Sequence[Outcome], column: str, decimals: int) -> str:
    values = [one[column] for one in runs if column in one]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def _note(runs: Sequence[Outcome], seeds: int) -> str:
    below = sum(one["mAP last"] < one["mAP first"] for one in runs)
    teacher = _cell(runs, "teacher", COLUMNS["mAP last"])
    notes = {
        f"**below its start** in {below} of {len(runs)}": below > 0,
        f"teacher mAP {teacher}": teacher != "-",
        f"{len(runs)} of {seeds} seeds": len(runs) < seeds,
    }
    return "; ".join(text for text, holds in notes.items() if holds)


def finished(method: str, seed: int, data: str, asked: argparse.Namespace) -> Outcome | None:
    """Train unless that is done; None where the run failed, which is logged."""
    preset = "demo" if asked.data == "synthetic" else "omniglot"
    name = f"{method}-{preset}-{asked.rounds}x{asked.steps}x{asked.batch}-seed{seed}"
    words = {
        "--preset": preset,
        "--data": data,
        "--storage": asked.storage,
        "--name": name,
        "--seed": seed,
        "--rounds": asked.rounds,
        "--method.steps": asked.steps,
        "--method.batch-size": asked.batch,
        "--eval-every": asked.rounds,  # before the first round and after the last one
    }
    run = Path(asked.storage) / name
    if not (run / "result.json").exists():
        flags = [str(word) for pair in words.items() for word in pair]
        if reid(["train", method, *flags, "--local", "--cache", ""]) != 0:  # it has said why
            return None
    return read(run)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="synthetic", help="'synthetic', or a folder of Omniglot")
    parser.add_argument("--storage", default="runs/methods")
    parser.add_argument("--methods", nargs="+", default=contract.names())
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30, help="of a round")
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    data = asked.data
    if data == "synthetic":
        data = synthetic.draw(str(Path(asked.storage) / "synthetic"))
    outcomes: dict[str, dict[int, Outcome]] = {name: {} for name in asked.methods}
    for seed in asked.seeds:  # every method once before the second seed
        for method in asked.methods:
            outcome = finished(method, seed, data, asked)
            if outcome is not None:
                outcomes[method][seed] = outcome
    images = asked.steps * asked.batch
    print(f"{asked.data}: {asked.rounds} rounds of {images} images, seeds {asked.seeds}\n")
    print("\n".join(table(outcomes, len(asked.seeds))))


if __name__ == "__main__":
    main()
