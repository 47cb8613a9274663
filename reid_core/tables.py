"""The four tables that stages exchange: IMAGES, FEATURES, LABELS, RANKS; checked read, atomic write.

Every table is keyed by ``image_id``. Row order is never trusted: a reader sorts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reid_core.storage import atomic_path, open_folder

if TYPE_CHECKING:
    import pyarrow.dataset as ds

SPLITS = ("train", "query", "gallery")
ROW_GROUP = 16_384  # rows that are read together; of a sorted table a block reads only its own
SOURCE_ID = 2**40  # ids of a labelled source set start here, so that they never meet target ids


def _field(name: str, dtype: pa.DataType, *, null: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=null)


IMAGES = pa.schema(
    [
        _field("image_id", pa.int64()),
        _field("path", pa.string()),  # relative to the root of the data
        _field("split", pa.string()),  # one of SPLITS
        _field("pid", pa.int64(), null=True),  # null unknown, -1 junk, 0 distractor
        _field("camid", pa.int32(), null=True),
        _field("tracklet", pa.int64(), null=True),
    ]
)

LABELS = pa.schema(
    [
        _field("image_id", pa.int64()),
        _field("level", pa.int8()),  # 0 = finest
        _field("label", pa.int64()),  # -1 = outlier
        _field("is_core", pa.bool_()),
        _field("confidence", pa.float32()),  # (1 + cosine to the cluster mean) / 2; 0 for outliers
    ]
)

RANKS = pa.schema(
    [
        _field("query_id", pa.int64()),
        _field("rank", pa.int32()),  # from 1
        _field("gallery_id", pa.int64()),
        _field("similarity", pa.float32()),
        _field("match", pa.bool_()),
    ]
)


def features_schema(dim: int) -> pa.Schema:
    """FEATURES: the columns of IMAGES and ``feature``, ``dim`` float32 of a unit row."""
    return IMAGES.append(_field("feature", pa.list_(pa.float32(), dim)))


def check_table(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Select the columns of ``schema`` in its order, or fail naming those that differ.

    Other columns are dropped, metadata is kept. Nulls are refused where the schema says so.

    Raises:
        ValueError: a column is missing, has another type, or has nulls that it may not have.
    """
    found = {field.name: field.type for field in table.schema}
    wrong = [
        f"{field.name} ({found.get(field.name, 'missing')}, want {field.type})"
        for field in schema
        if found.get(field.name) != field.type
    ]
    if wrong:
        raise ValueError(
            f"{where}: wrong columns: {', '.join(wrong)}; re-run the stage that wrote it"
        )
    null = [f.name for f in schema if not f.nullable and table.column(f.name).null_count]
    if null:
        raise ValueError(f"{where}: nulls in {', '.join(null)}; re-run the stage that wrote it")
    return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    """Read a Parquet file (path or URI) and check it against ``schema``; rows as they lie in the file."""
    filesystem, inner = open_folder(path)
    try:
        table = pq.read_table(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no readable Parquet table ({error})") from error
    return check_table(table, schema, str(path))


def read_features(path: str | Path) -> pa.Table:
    """Read a FEATURES table of any width, sorted by ``image_id``.

    Raises:
        ValueError: columns differ from the schema, an id occurs twice, or a feature is not finite.
    """
    filesystem, inner = open_folder(path)
    try:
        table = pq.read_table(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no readable Parquet table ({error})") from error
    kind = table.schema.field("feature").type if "feature" in table.schema.names else None
    if kind is None or not pa.types.is_fixed_size_list(kind):
        raise ValueError(f"{path}: column feature must be fixed_size_list<float32>, found {kind}")
    table = check_table(table, features_schema(kind.list_size), str(path)).sort_by("image_id")
    check_ids(table.column("image_id").to_numpy(), str(path))
    if not np.isfinite(feature_matrix(table)).all():
        raise ValueError(f"{path}: features with NaN or infinity; extract them again")
    return table


def feature_images(path: str | Path) -> pa.Table:
    """Every column of a FEATURES table but the features, sorted by ``image_id``.

    A hand-made table needs ``image_id`` and ``feature`` only. The path may be a folder of files.

    Raises:
        ValueError: it is no Parquet, one of the two has another type or is missing, or an id occurs
            twice.
    """
    rows = _dataset(path)
    kind = dict(zip(rows.schema.names, rows.schema.types, strict=True))
    feature = kind.get("feature")
    if feature is None or not pa.types.is_fixed_size_list(feature):
        raise ValueError(
            f"{path}: column feature must be fixed_size_list<float32>, found {feature}"
        )
    key = pa.schema([IMAGES.field("image_id"), features_schema(feature.list_size).field("feature")])
    check_table(rows.schema.empty_table(), key, str(path))
    table = rows.to_table(columns=[name for name in kind if name != "feature"])
    check_table(table, key.remove(1), str(path))
    for field in IMAGES:
        if kind.get(field.name, field.type) != field.type:
            table = _with_type(table, field, str(path))
    table = table.sort_by("image_id")
    check_ids(table.column("image_id").to_numpy(), str(path))
    return table


def feature_rows(path: str | Path, first: int, last: int) -> np.ndarray:
    """The unit rows (M, D) float32 of a FEATURES table with ids ``first`` to ``last``, sorted by id.

    Raises:
        ValueError: a row has nulls, is not finite or not of unit length to 1e-3; names its image id.
    """
    within = (pc.field("image_id") >= first) & (pc.field("image_id") <= last)
    table = _dataset(path).to_table(columns=["image_id", "feature"], filter=within)
    table = table.sort_by("image_id")
    chunks = table.column("feature").chunks
    if any(chunk.null_count or chunk.flatten().null_count for chunk in chunks):
        raise ValueError(f"{path}: nulls in column feature; extract again or drop these rows")
    feature = feature_matrix(table)
    length = np.sqrt(np.einsum("nd,nd->n", feature, feature))
    wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
    if len(wrong):
        image_id = table.column("image_id")[wrong[0]]
        raise ValueError(
            f"{path}: the feature of image_id {image_id} has length {length[wrong[0]]:.4g} ({len(wrong)} such); "
            "rows must be finite and of unit length: divide by the norm, look for NaN in the weights"
        )
    return feature


def _with_type(table: pa.Table, field: pa.Field, where: str) -> pa.Table:
    """Cast a column, or fail naming it."""
    place = table.column_names.index(field.name)
    found = table.column(place)
    try:
        return table.set_column(place, field, found.cast(field.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{where}: wrong columns: {field.name} ({found.type}, want {field.type}); drop or mend it"
        ) from error


def _dataset(path: str | Path) -> ds.Dataset:
    import pyarrow.dataset as ds  # with it comes pandas

    filesystem, inner = open_folder(path)
    try:
        return ds.dataset(inner, filesystem=filesystem, format="parquet")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no readable Parquet table ({error})") from error


def check_ids(image_id: np.ndarray, where: str) -> None:
    """Refuse sorted ids (N,) in which one occurs twice."""
    twice = image_id[1:][image_id[1:] == image_id[:-1]]
    if len(twice):
        raise ValueError(f"{where}: image_id {twice[0]} occurs more than once; ids must be unique")


def feature_matrix(table: pa.Table) -> np.ndarray:
    """The feature column as a (N, D) float32 array, rows as in the table."""
    column = table.column("feature").combine_chunks()
    flat = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return flat.flatten().to_numpy().reshape(len(flat), flat.type.list_size)


def features_table(images: pa.Table, image_id: np.ndarray, feature: np.ndarray) -> pa.Table:
    """Join features (N, D) to their IMAGES rows by id; the result is sorted by ``image_id``."""
    order = np.argsort(image_id)
    rows = images.sort_by("image_id")
    where = np.searchsorted(rows.column("image_id").to_numpy(), image_id[order])
    flat = pa.array(np.ascontiguousarray(feature[order], dtype=np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, feature.shape[1])
    table = rows.take(pa.array(where))
    return table.append_column(_field("feature", column.type), column)


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write Parquet to a temporary name beside ``path`` (path or URI) and rename it."""
    with atomic_path(path) as (filesystem, temporary):
        pq.write_table(table, temporary, filesystem=filesystem, row_group_size=ROW_GROUP)
