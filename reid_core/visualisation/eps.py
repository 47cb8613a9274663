"""A picture of ``labelling.scan``: what every radius gives, and which one is recommended."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from reid_core.storage import write_bytes

PANELS = {
    "label_free": "label-free score",
    "silhouette": "silhouette",
    "stability": "stability",
    "clusters": "clusters",
    "outliers": "outliers (share)",
    "largest": "largest cluster (share)",
    "ari_singletons": "ARI with the true ids",
}
COLUMNS = 4


def plot_scan(rows: Sequence[dict[str, float]], chosen: int, path: str | Path) -> None:
    """Write a PNG (path or URI): a panel a measure over eps, with a line at the chosen row.

    Args:
        rows: those of ``scan_eps``; ARI is drawn where they have it.
        chosen: index of the recommended row.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    names = [name for name in PANELS if name in rows[0]]
    height = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.4 * height), layout="constrained")
    panels = figure.subplots(height, COLUMNS, sharex=True).flat
    best = rows[chosen]["eps"]
    eps = [row["eps"] for row in rows]
    for panel, name in zip(panels, names, strict=False):
        panel.plot(eps, [row[name] for row in rows], marker=".")
        panel.axvline(best, color="tab:red", linestyle="--")
        panel.set_title(PANELS[name], fontsize="medium")
        panel.grid(alpha=0.3)
        panel.set_xlabel("eps")
        panel.tick_params(labelbottom=True)
    for panel in list(figure.axes)[len(names) :]:
        panel.remove()
    figure.suptitle(f"recommended eps {best:g}")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())
