"""Train a recipe as a Ray job; takes what `braintumor-ray train` takes.

    ray job submit --working-dir . -- python jobs/train.py SOURCE --recipe NAME --output RUN ...

The folder of the run (`--output`, `--cache`) must be one that all nodes see.
"""

import sys

from braintumor_ray.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
