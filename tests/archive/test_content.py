"""Equal rows have equal content in any order; any changed value changes it."""

import numpy as np
import pyarrow as pa
import pytest

from braintumor_ray.archive.content import Content, content_of
from braintumor_ray.predict.schema import OPTIONAL_FIELDS, result_schema

FIELDS = result_schema((1, 3), ("gradcam", "gradcam_pp"), tuple(OPTIONAL_FIELDS))
# By type: values, and others of which one differs: a number, or an empty value for none.
VALUES = {
    pa.int64(): ([1, 2, -3, 4], [1, 2, -3, 5]),
    pa.int32(): ([1, None, -3, 4], [1, 0, -3, 4]),
    pa.float32(): ([0.5, None, 0.25, 0.0], [0.5, 0.0, 0.25, 0.0]),
    pa.bool_(): ([True, False, None, True], [True, False, False, True]),
    pa.string(): (["a/é.png", "b", None, ""], ["a/é.png", "b", "", ""]),
    pa.timestamp("us", tz="UTC"): ([1, 2, None, 4], [1, 2, 0, 4]),
    pa.list_(pa.float16()): ([[0, 1, 2], None, [6, 7, 8], []], [[0, 1, 3], None, [6, 7, 8], []]),
    pa.list_(pa.float32()): ([[0.5, 1], None, [0], []], [[1, 0.5], None, [0], []]),
    pa.list_(pa.string()): (
        [["ab", "c"], None, [""], []],
        [["a", "bc"], None, [""], []],
    ),
}


def rows(changed=None):
    """A table of all columns; one of them with its other values."""
    columns = [[as_type(v, f.type) for v in VALUES[f.type][f.name == changed]] for f in FIELDS]
    arrays = [pa.array(values, f.type) for values, f in zip(columns, FIELDS, strict=True)]
    return pa.table(arrays, schema=FIELDS)


def as_type(value, kind):
    """Half-precision numbers must be NumPy's."""
    is_map = value is not None and kind == pa.list_(pa.float16())
    return np.array(value, np.float16) if is_map else value


def test_order_files_and_columns_of_nulls_do_not_matter():
    table = rows()
    whole = content_of(table)
    assert content_of(table.take([2, 0, 3, 1])) == whole
    assert content_of(table.slice(0, 1)) + content_of(table.slice(1)) == whole
    wider = table.append_column("new", pa.nulls(4, pa.string()))
    assert content_of(wider.select([*reversed(wider.column_names)])) == whole
    assert content_of(table.slice(4)) == Content()


@pytest.mark.parametrize("name", FIELDS.names)
def test_any_changed_value_changes_it(name):
    assert content_of(rows(name)) != content_of(rows())


@pytest.mark.parametrize(
    "lists",
    [
        [["b", "a"]],
        [["a"]],
        [["a", "b", ""]],
        [["a", None]],
        [["ab"]],
        [[]],
        [None],
    ],
)
def test_lists_of_other_strings_are_other_content(lists):
    kind = pa.list_(pa.string())
    table = pa.table({"prediction_set": pa.array([["a", "b"]], kind)})
    assert content_of(pa.table({"prediction_set": pa.array(lists, kind)})) != content_of(table)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.bool_(), pa.list_(pa.string())])
def test_a_null_in_a_list_is_no_value_and_changes_no_other_row(kind):
    value = [] if pa.types.is_list(kind) else kind.to_pandas_dtype()(0)
    lists = pa.array([[value, None], [value, value], [None, value]], pa.list_(kind))
    each = [content_of(pa.table({"column": lists.slice(i, 1)})) for i in range(3)]
    assert len(set(each)) == 3
    assert sum(each, Content()) == content_of(pa.table({"column": lists}))


def test_values_that_change_places_change_it():
    table = rows()
    uri = FIELDS.get_field_index("uri")
    swapped = table.set_column(uri, FIELDS[uri], pa.array(["b", "a/é.png", None, ""]))
    assert content_of(swapped) != content_of(table)
    assert content_of(pa.concat_tables([table, table])) != content_of(table)
