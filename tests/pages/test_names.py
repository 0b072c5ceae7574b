"""Names on pages."""

import pyarrow as pa

from braintumor_ray.audit.audit import audit_scans, combine, copy_keys
from braintumor_ray.evaluation.report import class_counts
from braintumor_ray.pages.names import scan_name


def test_a_scan_is_named_by_its_path_and_frame():
    assert scan_name({"path": "a.png", "frame": 0}) == "a.png"
    assert scan_name({"path": "a.tif", "frame": 3}) == "a.tif, frame 3"


def test_scans_without_a_class_are_not_counted_in_place_of_a_class_named_none(fingerprinted):
    labels = ["glioma", "none", "none", None]
    assert class_counts(pa.table({"x": labels}), labels) == {
        "none": {"glioma": 1, "none": 2, "(none)": 1}
    }
    scans = fingerprinted.slice(0, 4)
    for name, values in (("label", labels), ("official_split", [None] * 4)):
        index = scans.schema.get_field_index(name)
        scans = scans.set_column(index, name, pa.array(values, pa.string()))
    scans = combine([("a", scans)])
    audit = audit_scans(scans, copy_keys(scans), shortcuts=False)
    assert audit["scans"] == {"none": {"glioma": 1, "none": 2, "(none)": 1}}
