"""Files/s to uint8 gray: ours beside OpenCV, Pillow and torchvision on the same bytes.

    python benchmarks/decode.py [--count N] [--output DIR]

One thread each, bytes in memory. `ours` checks what the others let pass (truncated data, limits,
orientation). `ours, sandboxed` goes through the decoding child as the archive job does, and ends in
the network's square with the pixels' hash. DICOM (16 bits, 256 and 512 pixels, uncompressed and
JPEG 2000 where its plugin is installed): the CPU time of `decode` over that of pydicom's own
`dcmread` and `pixel_array` on the same bytes, which neither windows nor hides anything. The
reduced rows decode a JPEG at 1/2 in each direction: other pixels, so no setting of ours; they show
what that would be worth.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import sys  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import io

import cv2
import numpy as np
from PIL import Image

from benchmarks import common

Content = Sequence[bytes]


def ours(contents: Content) -> None:
    from braintumor_ray.decode.decode import decode

    for content in contents:
        decode(content)


def pillow(contents: Content, mode: str) -> None:
    for content in contents:
        np.asarray(Image.open(io.BytesIO(content)).convert(mode))


def pillow_reduced(contents: Content) -> None:
    for content in contents:
        image = Image.open(io.BytesIO(content))
        image.draft("L", (image.width // 2, image.height // 2))
        np.asarray(image.convert("L"))


def opencv(contents: Content, flag: int) -> None:
    for content in contents:
        cv2.imdecode(np.frombuffer(content, np.uint8), flag)


class Sandboxed:
    """Our decoding child, kept for all rounds."""

    def __init__(self) -> None:
        from braintumor_ray.decode.prepare import WORKER, PrepareOptions
        from braintumor_ray.decode.preprocess import Preprocessing
        from braintumor_ray.decode.sandbox import DecodeSandbox

        preprocessing = Preprocessing(224, "area", (0.0,) * 3, (1.0,) * 3)
        self.options = PrepareOptions(preprocessing=preprocessing)
        self.sandbox = DecodeSandbox(WORKER)

    def __call__(self, contents: Content) -> None:
        for _ in self.sandbox.map((content, self.options) for content in contents):
            pass


def torchvision_call() -> Callable[[Content], None] | None:
    """Torchvision's decoder, where its compiled extension fits the installed torch."""
    import torch

    from braintumor_ray.models.vision_libraries import import_timm

    import_timm()  # makes torchvision importable
    from torchvision.io import ImageReadMode, decode_image

    def call(contents: Content) -> None:
        for content in contents:
            decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode)

    mode = ImageReadMode.GRAY
    try:
        call([cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()])
    except (RuntimeError, AttributeError):  # the extension is not there
        return None
    return call


def candidates(contents: Content) -> dict[str, Callable[[], object]]:
    sandboxed, vision = Sandboxed(), torchvision_call()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(contents),
        "ours, sandboxed, to square and hash": lambda: sandboxed(contents),
        "OpenCV, gray": lambda: opencv(contents, cv2.IMREAD_GRAYSCALE),
        "OpenCV, color": lambda: opencv(contents, cv2.IMREAD_COLOR),
        "OpenCV, gray, reduced to 1/2": lambda: opencv(contents, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        "Pillow, gray": lambda: pillow(contents, "L"),
        "Pillow, color": lambda: pillow(contents, "RGB"),
        "Pillow, gray, reduced to 1/2": lambda: pillow_reduced(contents),
    }
    if vision:
        calls["torchvision, gray"] = lambda: vision(contents)
    return calls


def equal_pixels(contents: Content) -> dict[str, float]:
    """Share of the files for which a peer's gray image has exactly our pixels."""
    from braintumor_ray.decode.decode import decode

    same = {"OpenCV, gray": 0, "Pillow, gray": 0}
    for content in contents:
        gray = decode(content).gray
        others = {
            "OpenCV, gray": cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE),
            "Pillow, gray": np.asarray(Image.open(io.BytesIO(content)).convert("L")),
        }
        for name, pixels in others.items():
            same[name] += gray is not None and np.array_equal(gray, pixels)
    return {name: count / len(contents) for name, count in same.items()}


def dicom_file(side: int, compressed: bool) -> bytes:
    """One MR slice of 12 bits in 16, as scanners write it, without tags of its own."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, generate_uid

    noise = np.random.default_rng(side)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    pixels = (head * (900 + noise.normal(0, 60, (side, side)))).clip(0, 4095).astype("<u2")
    scan = Dataset()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.SOPClassUID = scan.file_meta.MediaStorageSOPClassUID = MRImageStorage
    scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    scan.Modality, scan.Rows, scan.Columns = "MR", side, side
    scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 12, 11, 0
    scan.WindowCenter, scan.WindowWidth = 600, 1200
    scan.PixelData = pixels.tobytes()
    if compressed:
        scan.compress(JPEG2000Lossless)
    stream = io.BytesIO()
    scan.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom_ratios(rounds: int) -> dict[str, dict[str, float]]:
    """CPU time of ours over pydicom's, by kind of file: spread over interleaved pairs."""
    import time

    import pydicom

    from braintumor_ray.decode.decode import decode

    def cpu(call: Callable[[bytes], object], data: bytes) -> float:
        start = time.thread_time()
        call(data)
        return time.thread_time() - start

    def plain(data: bytes) -> object:
        return pydicom.dcmread(io.BytesIO(data)).pixel_array

    found = {}
    for side in (256, 512):
        for kind in ("uncompressed", "JPEG 2000"):
            try:
                data = dicom_file(side, kind != "uncompressed")
            except (RuntimeError, NotImplementedError, ValueError):  # no plugin that encodes it
                continue
            assert decode(data).gray is not None
            pairs = [(cpu(decode, data), cpu(plain, data)) for _ in range(10 * rounds)]
            found[f"{side} x {side}, {kind}"] = common.ratios(*zip(*pairs, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="seconds only: does it still run?")
    parser.add_argument("--output", default=common.OUTPUT)
    options = parser.parse_args()
    if options.tiny:
        options.count, options.rounds = 8, 3
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as work:
        paths, kind = common.scan_files(options.count, Path(work))
        contents = [path.read_bytes() for path in paths]
    times = common.interleaved(candidates(contents), options.rounds)
    rates = {
        name: common.spread([len(contents) / seconds for seconds in values])
        for name, values in times.items()
    }
    same, dicom = equal_pixels(contents), dicom_ratios(options.rounds)
    found = {
        "dicom_over_pydicom": dicom,
        "machine": common.machine(),
        "files": len(contents),
        "kind": kind,
        "bytes": sum(map(len, contents)) / len(contents),
        "rates": rates,
        "equal_pixels": same,
        "torchvision": "measured" if "torchvision, gray" in rates else "its extension does not fit",
    }
    known = common.write_json(options.output, "decode", found)
    title = f"Decoding {len(contents)} {kind}, one thread: {common.cpu_name()}"
    common.bars(known.with_suffix(".png"), title, {"files/s": rates}, "median and quartiles")
    rows = [
        {
            "candidate": name,
            "files/s": f"{rate['median']:.0f}",
            "quartiles": f"{rate['q1']:.0f} to {rate['q3']:.0f}",
            "our pixels exactly": f"{same[name]:.1%}" if name in same else "",
        }
        for name, rate in rates.items()
    ]
    print(common.table(rows))
    known_kinds = [{"DICOM": k, "CPU / pydicom's": f"{r['median']:.2f}"} for k, r in dicom.items()]
    print(common.table(known_kinds))
    print(f"torchvision: {found['torchvision']}\n{kind}, {found['machine']}")
    print(f"written: {known}, {known.with_suffix('.png')}")


if __name__ == "__main__":
    main()
