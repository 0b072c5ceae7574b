"""A driver that trains over two workers and tells each epoch on stdout."""

import contextlib
import json
import os
import sys
from pathlib import Path


def main():
    archive, output, epochs = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")

    def tell(**values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    with contextlib.redirect_stdout(sys.stderr):
        from braintumor_ray.catalog.build import load_catalog
        from braintumor_ray.local_ray import ray_session
        from braintumor_ray.recipes.loader import load_recipe
        from braintumor_ray.training.options import TrainOptions, Workers
        from braintumor_ray.training.run import train

        settings = ["data.image_size=48", "data.batch_size=8", f"stages.scratch.epochs={epochs}"]
        settings.append("data.fractions={train=0.5,val=0.3,test=0.2}")
        recipe = load_recipe("demo", settings)
        with ray_session():
            options = TrainOptions(recipe, Path(output), "none", Workers(2, threads=1))
            trained = train(load_catalog(archive), options, lambda line: said(line, tell))
        tell(history=trained.history)


def said(line, tell):
    if line.startswith("epoch"):
        tell(line=line)


if __name__ == "__main__":
    main()
