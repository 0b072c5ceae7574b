"""DICOM scans with a place in the patient, and results of them, without a model."""

import io
import json
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.catalog.identity import IdentityHash
from braintumor_ray.catalog.options import CatalogOptions
from tests.builders import disc_scan
from tests.decode.volume_files import item, mr_dataset
from tests.evaluation.make_results import make_results

SHAPE = (96, 112)
OBLIQUE = [0.8660254, 0.5, 0.0, -0.3535534, 0.6123724, -0.7071068]
ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": OBLIQUE,
}
SCORED_AT = datetime(2026, 11, 1, 3, tzinfo=timezone.utc)


def uid(*parts):
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def scan_dataset(number, orientation, spacing=(0.9, 0.7), **tags):
    """A slice of a series; the name of its patient is planted, to be found where it must not be."""
    dataset = mr_dataset(disc_scan(number, SHAPE))
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series", *orientation)
    dataset.SOPInstanceUID = uid("scan", number)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.PatientName = "PLANTED77", "Planted^Name"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "F"
    dataset.FrameOfReferenceUID = uid("frame")
    dataset.ImageOrientationPatient = orientation
    normal = np.cross(orientation[:3], orientation[3:])
    dataset.ImagePositionPatient = [float(v) for v in np.array([-40, 15, 7]) + 5 * number * normal]
    dataset.PixelSpacing, dataset.SliceThickness = list(spacing), 5.0
    dataset.InstanceNumber = number + 1
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def enhanced_dataset(orientation):
    """Two frames whose place is in functional groups."""
    first = scan_dataset(0, orientation)
    pixels = np.stack([disc_scan(7, SHAPE), disc_scan(8, SHAPE)])
    dataset = mr_dataset(pixels)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "FrameOfReferenceUID"):
        setattr(dataset, keyword, first[keyword].value)
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("enhanced")
    dataset.SeriesInstanceUID = uid("enhanced series")
    del dataset.ImageOrientationPatient
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[0.9, 0.7], SliceThickness=5.0)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=place)])
        for place in ([-40.0, 15.0, 7.0], [-40.0, 15.0, 12.0])
    ]
    return dataset


def write(folder, name, dataset):
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    (folder / name).write_bytes(stream.getvalue())


def scored(folder, archive, **options):
    """RESULTS of every scan of an archive, complete as the archive job leaves it."""
    catalog = load_catalog(archive, CatalogOptions(identity=IdentityHash(b"key")))
    make_results(folder, catalog, **options)
    for path in folder.glob("rows/*/*.parquet"):
        table = pq.read_table(path)
        times = pa.array([SCORED_AT] * table.num_rows, table.schema.field("scored_at").type)
        at = table.column_names.index("scored_at")
        pq.write_table(table.set_column(at, "scored_at", times), path)
    return folder


def plant(folder, row, column, method="gradcam"):
    """Make one cell of every map of a method hot, all others zero."""
    height, width = json.loads((folder / "results.json").read_text())["cam_shape"]
    cam = np.zeros((height, width), np.float16)
    cam[row, column] = 1
    for path in folder.glob("rows/*/*.parquet"):
        table = pq.read_table(path)
        at = table.column_names.index(method)
        values = pa.array([cam.ravel()] * table.num_rows, table.schema.field(method).type)
        pq.write_table(table.set_column(at, table.schema.field(method), values), path)
