r"""Score what is new in an archive, every night; takes what `braintumor-ray nightly` takes.

    ray job submit --submission-id score-DATE --working-dir . -- \
        python jobs/score_archive.py SOURCE --bundle B --output RESULTS ...

Safe to submit twice: Ray refuses a submission id that it knows, and the lease on RESULTS keeps a
second job out. Exit codes: 0 all is well; 1 failed, run it again; 3 a gate (committed, look).
"""

import sys

from braintumor_ray.cli import app

if __name__ == "__main__":
    app(["nightly", *sys.argv[1:]])
