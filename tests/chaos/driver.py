"""A driver that scores what it is told on stdin, again and again, until it is killed."""

import contextlib
import json
import os
import sys


def main():
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        from braintumor_ray.catalog.build import load_catalog
        from braintumor_ray.errors import BrainTumorError
        from braintumor_ray.local_ray import ray_session
        from braintumor_ray.scoring.job import ScoreOptions, score
        from braintumor_ray.scoring.options import DecodeSettings, PredictSettings, Request

        with ray_session():
            for line in sys.stdin:
                order = json.loads(line)
                options = ScoreOptions(
                    PredictSettings(order["bundle"], torch_threads=1, engine=order["engine"]),
                    DecodeSettings(worker="tests.scoring.workers:drowsy"),
                    block_size=5,
                    request=Request(predictors=(1, 1), decoders=(1, 1)),
                )
                try:
                    summary = score(load_catalog(order["archive"]), order["results"], options)
                    answer = {"scans": summary.scans, "resumed": summary.resumed}
                except BrainTumorError as error:
                    answer = {"error": str(error)}
                answers.write(json.dumps(answer) + "\n")
                answers.flush()


if __name__ == "__main__":
    main()
