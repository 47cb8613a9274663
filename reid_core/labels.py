"""What the label stage of a method takes and gives: rows to cluster, and the labels of all images.

N images, D feature size, L label levels, the first the finest.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from reid_core.labelling.engine import Engine
from reid_core.tables import LABELS, check_ids, check_table


@dataclass(frozen=True, kw_only=True)
class Features:
    """Rows to cluster, in ``image_id`` order, and what clusters them."""

    image_id: np.ndarray  # (N,) int64, increasing
    feature: np.ndarray  # (N, D) float32 unit rows
    engine: Engine = field(default_factory=Engine)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Pseudo labels of all images, in ``image_id`` order; the value behind a LABELS table."""

    image_id: np.ndarray  # (N,) int64, increasing
    label: np.ndarray  # (N, L) int64; -1 outlier; numbered by the smallest core image id
    is_core: np.ndarray  # (N, L) bool
    confidence: np.ndarray  # (N, L) float32
    state: dict[str, float] = field(
        default_factory=dict
    )  # what the method carries to the next round
    metrics: dict[str, float] = field(
        default_factory=dict
    )  # logged: clusters, outliers, label_free, ...

    def table(self) -> pa.Table:
        """The LABELS table; ``state.NAME`` and ``metrics.NAME`` (no times) lie in its metadata."""
        count, levels = self.label.shape
        columns = [
            np.tile(self.image_id, levels),
            np.repeat(np.arange(levels, dtype=np.int8), count),
            *(a.T.reshape(-1) for a in (self.label, self.is_core, self.confidence)),
        ]
        notes = {f"state.{k}": repr(v) for k, v in self.state.items()}
        kept = {k: v for k, v in self.metrics.items() if not k.startswith("seconds_")}
        notes |= {f"metrics.{k}": repr(v) for k, v in kept.items()}
        return pa.table(columns, schema=LABELS).replace_schema_metadata(notes)

    @classmethod
    def from_table(cls, table: pa.Table, where: str = "labels") -> "Labels":
        """Read a LABELS table in any row order.

        Raises:
            ValueError: a column is wrong, an id occurs twice, or levels hold different images.
        """
        notes = {
            k.decode(): float(v) for k, v in (table.schema.metadata or {}).items() if b"." in k
        }
        rows = check_table(table, LABELS, where).sort_by(
            [("level", "ascending"), ("image_id", "ascending")]
        )
        levels = len(rows.column("level").unique())
        ids, label, core, sure = (
            rows.column(name).to_numpy().reshape(levels, -1)
            for name in ("image_id", "label", "is_core", "confidence")
        )
        check_ids(ids[0], where)
        if (ids != ids[0]).any():
            raise ValueError(
                f"{where}: levels hold different images; re-run the stage that wrote it"
            )
        parts = {
            part: {
                k.removeprefix(f"{part}."): v for k, v in notes.items() if k.startswith(f"{part}.")
            }
            for part in ("state", "metrics")
        }
        return cls(image_id=ids[0], label=label.T, is_core=core.T, confidence=sure.T, **parts)
