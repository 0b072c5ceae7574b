"""Equal rows have equal content in any order; any changed value changes it."""

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.archive.content import Content, content_of

FIELDS = pa.schema(
    [
        pa.field("scan_id", pa.int64()),
        pa.field("uri", pa.string()),
        pa.field("decision", pa.bool_()),
        pa.field("entropy", pa.float32()),
        pa.field("gradcam", pa.list_(pa.float16())),
        pa.field("scored_at", pa.timestamp("us", tz="UTC")),
    ]
)


def rows():
    maps = np.arange(12, dtype=np.float16).reshape(4, 3)
    columns = {
        "scan_id": [1, 2, -3, 4],
        "uri": ["a/é.png", "b", None, ""],
        "decision": [True, False, None, True],
        "entropy": [0.5, None, 0.25, 0.0],
        "gradcam": [maps[0], None, maps[2], []],
        "scored_at": [1, 2, None, 4],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in FIELDS], schema=FIELDS)


def test_order_files_and_columns_of_nulls_do_not_matter():
    table = rows()
    whole = content_of(table)
    assert content_of(table.take([2, 0, 3, 1])) == whole
    assert content_of(table.slice(0, 1)) + content_of(table.slice(1)) == whole
    wider = table.append_column("new", pa.nulls(4, pa.string()))
    assert content_of(wider.select([*reversed(wider.column_names)])) == whole
    assert content_of(table.slice(4)) == Content()


CHANGES = {
    "scan_id": [1, 2, -3, 5],
    "uri": ["a/é.png", "b", "", ""],
    "decision": [True, False, False, True],
    "entropy": [0.5, 0.0, 0.25, 0.0],
    "gradcam": [np.array([0, 1, 3], np.float16), None, np.array([6, 7, 8], np.float16), []],
    "scored_at": [1, 2, 0, 4],
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_changed_value_changes_it(name):
    index = FIELDS.get_field_index(name)
    changed = rows().set_column(index, FIELDS[index], pa.array(CHANGES[name], FIELDS[index].type))
    assert content_of(changed) != content_of(rows())


def test_values_that_change_places_change_it():
    table = rows()
    swapped = table.set_column(1, FIELDS[1], pa.array(["b", "a/é.png", None, ""]))
    assert content_of(swapped) != content_of(table)
    assert content_of(pa.concat_tables([table, table])) != content_of(table)
