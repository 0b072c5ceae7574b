"""Every page that the product makes, of small data; and the servers whose pages they are."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import uvicorn

from braintumor_ray.audit.audit import run_audit
from braintumor_ray.catalog.build import load_catalog
from braintumor_ray.evaluation.evaluate import EvaluateOptions, evaluate
from braintumor_ray.evaluation.options import ValidateOptions
from braintumor_ray.evaluation.validation import validate
from braintumor_ray.models.bundle import save_bundle
from braintumor_ray.review.command import opened
from braintumor_ray.review.options import ReviewOptions
from braintumor_ray.review.web import create_app
from braintumor_ray.worklist.worklist import make_worklist
from tests.builders import make_fields, make_model, write_archive
from tests.evaluation.make_results import CLASSES, make_results

LONG = "an_uncommonly_long_folder_name_of_an_archive_without_any_blank_in_it/" * 2


def report_page(folder, run):
    options = EvaluateOptions(split="test", n_boot=30, device="cpu", precision="fp32")
    evaluate(run.catalog, run.bundle, folder, options)
    return folder / "report.html"


def many_classes_page(folder):
    """Of twelve classes with names that have no blank to break at."""
    classes = ("no_tumor", *(f"a_name_without_any_blank_of_tumors_number_{n}" for n in range(11)))
    write_archive(folder / "scans", 24, classes=classes)
    model = make_model(classes=len(classes))
    save_bundle(folder / "bundle", make_fields(model.architecture, classes), model, None, "# card")
    options = EvaluateOptions(
        split="all", n_boot=30, device="cpu", precision="fp32", allow_leakage=True
    )
    evaluate(load_catalog(folder / "scans"), folder / "bundle", folder / "report", options)
    return folder / "report" / "report.html"


def audit_page(folder, table):
    run_audit([("phantoms", table)], folder)
    return folder / "audit.html"


def validation_page(folder, run):
    options = ValidateOptions(n_boot=30, device="cpu", precision="fp32")
    rows = run.catalog.filter(pc.equal(run.catalog["split"], "test"))
    validate({"a_hospital_with_a_long_name": rows}, run.bundle, folder, options)
    return folder / "validation.html"


def worklist_page(folder, archive):
    """With patients, prediction sets, long paths and scans that cannot be read."""
    catalog = load_catalog(archive)
    patients = [f"{'k' * 32}{n // 3}" for n in range(catalog.num_rows)]
    paths = [LONG + path for path in catalog["path"].to_pylist()]
    for name, values in {"patient_key": patients, "path": paths}.items():
        catalog = catalog.set_column(
            catalog.column_names.index(name), name, pa.array(values, pa.string())
        )
    sets = [[CLASSES[0]] if n % 3 else list(CLASSES[:3]) for n in range(catalog.num_rows)]
    results = make_results(folder / "results", catalog, sets=sets, unreadable=(1,))
    make_worklist(results, folder / "worklist")
    return folder / "worklist" / "worklist.html"


@contextmanager
def review_server(results):
    """The review of a results folder on a socket of this process; yields its address."""
    with opened(str(results), None, ReviewOptions(reviewer="R. One")) as review:
        config = uvicorn.Config(create_app(review), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            run = server.serve([listener])
            thread = threading.Thread(target=lambda: asyncio.run(run), daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join(10)
