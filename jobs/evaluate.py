"""Evaluate a bundle as a Ray job; takes what `braintumor-ray evaluate` takes.

ray job submit --working-dir . -- python jobs/evaluate.py SOURCE --bundle B --output OUT ...
"""

import sys

from braintumor_ray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
