import subprocess
import sys

CHECK = """
import sys
import numpy as np
from braintumor_ray.explain.regions import head_weights
from braintumor_ray.scoring.predict_stage import ParallelPredictor
from braintumor_ray.predict.predictor import Predictor
from tests.builders import disc_scan

predictor = Predictor.from_bundle(sys.argv[1], device="cpu", precision="fp32", batch_size=4)
size = predictor.bundle.preprocessing.image_size
scans = np.stack([disc_scan(seed, (size, size)) for seed in range(11)])
heads = head_weights(scans, predictor.cam_shape)
alone = predictor(scans)
parallel = ParallelPredictor(predictor, threads=3)
for count in (11, 1, 0):
    found = parallel.predict(scans[:count], heads[:count])
    assert list(found) == list(alone)
    for name, wanted in alone.items():
        assert len(found[name]) == count, name
        if isinstance(wanted, list):
            assert found[name] == wanted[:count], name
        else:
            assert found[name].dtype == wanted.dtype, name
            np.testing.assert_allclose(found[name], wanted[:count], rtol=1e-3, atol=1e-5)
print("same")
"""


def test_batches_on_threads_give_the_same_columns_in_the_same_order(bundle_path):
    """In a process of its own: it sets torch's threads for good."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(bundle_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "same", done.stderr
