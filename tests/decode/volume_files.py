"""Small DICOM and NIfTI files made of given pixels, whole and damaged, the same for a seed."""

import gzip
import io
import random

import nibabel
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

from tests.decode.mutations import slice_like

AXIAL = [1, 0, 0, 0, 1, 0]


def dicom_bytes(pixels, syntax=ExplicitVRLittleEndian, *, photometric="MONOCHROME2", **tags):
    """A DICOM file: (H, W) or (N, H, W), uint8, uint16 or int16; further tags by keyword."""
    dataset = mr_dataset(pixels, photometric)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    if syntax.is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    return saved(dataset)


def mr_dataset(pixels, photometric="MONOCHROME2"):
    """An MR object with its pixels, uncompressed."""
    storage = MRImageStorage if pixels.ndim == 2 else EnhancedMRImageStorage
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = storage, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.Modality, dataset.PatientID = "MR", "P1"
    dataset.ImageOrientationPatient = AXIAL
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    return dataset


def item(**tags):
    """A sequence item."""
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def saved(dataset):
    """A dataset as the bytes of a file with preamble."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def without_preamble(dataset, syntax=ImplicitVRLittleEndian):
    """The dataset alone, as old archives and some exports have it."""
    buffer = io.BytesIO()
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    bare = Dataset(dataset)
    bare.save_as(buffer, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return buffer.getvalue()


def nifti_bytes(voxels, affine=None, *, zipped=True, kind=nibabel.Nifti1Image, **header):
    """A NIfTI file of stored voxels; `header` sets fields such as scl_slope."""
    image = kind(voxels, np.eye(4) if affine is None else affine)
    for field, value in header.items():
        image.header[field] = value
    content = image.to_bytes()
    return gzip.compress(content, 1, mtime=0) if zipped else content


def as_axial_volume(slices):
    """Voxels (x, y, z), right-anterior-superior, whose axial slices look as given (N, H, W)."""
    return np.ascontiguousarray(slices[:, ::-1, ::-1].transpose(2, 1, 0))


def intact_volumes(seed, n):
    """`n` named files, in turn DICOM plain, RLE, multi-frame, NIfTI and zipped NIfTI."""
    rng = np.random.default_rng(seed)
    files = []
    for i in range(n):
        stack = np.stack([slice_like(rng, 64, 48) for _ in range(3)])
        content, extension = _MAKERS[i % len(_MAKERS)](stack)
        files.append((f"intact_{i:03d}{extension}", content))
    return files


def mutated_volumes(seed, n):
    """`n` damaged files: cut off, bits flipped, a part overwritten, or the head alone."""
    rng = random.Random(seed)
    files = []
    for i, (name, content) in enumerate(intact_volumes(seed + 1, n)):
        damage = _DAMAGES[rng.randrange(len(_DAMAGES))]
        files.append((f"damaged_{i:03d}_{name}", damage(rng, content)))
    return files


_MAKERS = (
    lambda stack: (dicom_bytes(stack[0].astype(np.int16) * 9), ".dcm"),
    lambda stack: (dicom_bytes(stack[0], RLELossless), ""),
    lambda stack: (dicom_bytes(stack), ".ima"),
    lambda stack: (nifti_bytes(as_axial_volume(stack).astype(np.int16), zipped=False), ".nii"),
    lambda stack: (nifti_bytes(as_axial_volume(stack)), ".nii.gz"),
)


def _cut(rng, content):
    return content[: rng.randrange(len(content))]


def _flip(rng, content):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 4, 40))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _flip_head(rng, content):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 10))):
        damaged[rng.randrange(min(len(damaged), 1200))] = rng.randrange(256)
    return bytes(damaged)


def _overwrite(rng, content):
    start = rng.randrange(len(content))
    length = rng.randrange(1, 2000)
    return content[:start] + rng.randbytes(length) + content[start + length :]


_DAMAGES = (_cut, _flip, _flip_head, _overwrite)
