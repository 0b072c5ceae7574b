import numpy as np
import pyarrow as pa

from braintumor_ray.training.shards import mixed, squares


def catalog(files, frames):
    """Files in order of class, as a catalog is; ids are hashes of no order."""
    random = np.random.default_rng(0)
    count = files * frames
    return pa.table(
        {
            "scan_id": random.choice(2**62, count, replace=False) - 2**61,
            "uri": [f"/a/class{i * 4 // files}/{i}" for i in range(files) for _ in range(frames)],
            "frame": [frame for _ in range(files) for frame in range(frames)],
        }
    )  # fmt: skip


def test_shards_are_mixed_over_the_classes():
    table = catalog(2000, 1)
    found = mixed(table)
    assert sorted(found["scan_id"].to_pylist()) == sorted(table["scan_id"].to_pylist())
    first = [uri.split("/")[2] for uri in found["uri"].to_pylist()[:512]]
    shares = [first.count(f"class{i}") / 512 for i in range(4)]
    assert max(shares) < 0.35
    assert min(shares) > 0.15


def test_frames_of_a_file_stay_neighbors_and_in_order():
    found = mixed(catalog(40, 7)).to_pylist()
    for start in range(0, len(found), 7):
        part = found[start : start + 7]
        assert len({row["uri"] for row in part}) == 1
        assert [row["frame"] for row in part] == list(range(7))


def test_the_order_does_not_depend_on_the_catalogs():
    table = catalog(100, 2)
    other = table.take(pa.array(np.random.default_rng(1).permutation(200)))
    assert mixed(table)["scan_id"].to_pylist() == mixed(other)["scan_id"].to_pylist()


def test_squares_come_out_as_they_went_in():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    parts = [[image.tobytes() for image in part] for part in (images[:2], images[2:])]
    column = pa.chunked_array([pa.array(part, pa.large_binary()) for part in parts])
    found = squares(column, 8)
    assert np.array_equal(found, images)
    found += 1  # writable, and not the shard's own memory
    assert squares(column, 8)[0, 0, 0] == images[0, 0, 0]
    assert squares(column.slice(0, 0), 8).shape == (0, 8, 8)
