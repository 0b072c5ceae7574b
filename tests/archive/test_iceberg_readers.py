"""Programs that know nothing of this package read the Iceberg table: the documents' own snippet."""

import re
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from braintumor_ray.archive.compact import compact
from braintumor_ray.archive.options import CompactOptions
from braintumor_ray.archive.register import RUN, register
from braintumor_ray.predict.results import read_results, results_folder
from tests.archive.killing import kill_at
from tests.archive.nights import add_night, make_nights

load_catalog = pytest.importorskip("pyiceberg.catalog").load_catalog
polars = pytest.importorskip("polars")
# Steps of a registration, by name and number.
STEPS = [
    *[("name registered", 0), ("make a file of table", 0), ("make a file of table", 1)],
    *[("make a file of table", 2), ("commit table", 0), ("after commit table", 0)],
    ("name registered", 1),
]
DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "archive.md").read_text(encoding="utf-8")


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path}/catalog.db"


def snippet(language):
    """The code of the documents that reads the table."""
    section = DOCUMENT.split("## Apache Iceberg", 1)[1]
    (found,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return found


def by_the_documents(uri):
    """The variables of the snippet after it has run."""
    names = {}
    exec(snippet("python").replace("sqlite:////srv/catalog.db", uri), names)
    return names


def by_duckdbs_extension(metadata):
    """What DuckDB's `iceberg` gives; skips where no such extension fits this DuckDB."""
    connection = duckdb.connect()
    try:
        for name in ("avro", "iceberg"):
            package = pytest.importorskip(f"duckdb_extension_{name}")
            (path,) = Path(package.__file__).parent.rglob(f"{name}.duckdb_extension")
            connection.execute(f"LOAD '{path}'")
    except duckdb.Error as error:
        pytest.skip(f"no extension for DuckDB {duckdb.__version__}: {error}")
    command = re.sub(r"'results/\S+'", f"'{metadata}'", snippet("sql").split(";", 1)[1])
    connection.execute("SET TimeZone = 'UTC'")
    return connection.sql(command).to_arrow_table()


def values(rows):
    """Sorted rows, with times as numbers: programs disagree on the name of UTC."""
    place = rows.schema.get_field_index("scored_at")
    times = rows["scored_at"].cast(pa.timestamp("us")).cast(pa.int64())
    rows = rows.set_column(place, "scored_at", times)
    return rows.sort_by([("uri", "ascending"), ("frame", "ascending")]).to_pylist()


def check_readers(root, uri):
    """The three ways of the snippet give the rows that our reader gives, maps left out."""
    found = by_the_documents(uri)
    wanted = values(read_results(root).select(found["current"].column_names))
    assert values(found["current"]) == wanted
    assert values(found["newest"].to_arrow()) == wanted
    assert {row["status"] for row in found["rows"].to_pylist()} == {"ok"}
    return found["table"]


def check_snapshots(root, table):
    """Each generation is one snapshot."""
    found = [s.summary.additional_properties.get(RUN) for s in table.metadata.snapshots]
    assert found == [m["run_id"] for m in results_folder(root).manifests()]


def load(uri):
    catalog = load_catalog("default", type="sql", uri=uri)
    return catalog.load_table("braintumor.scans")


def check_distinct(root, table):
    """No generation is there twice, none after one that is not."""
    found = [s.summary.additional_properties.get(RUN) for s in table.metadata.snapshots]
    assert found == [m["run_id"] for m in results_folder(root).manifests()][: len(found)]


def test_pyiceberg_duckdb_and_polars_read_the_table_before_and_after_compaction(tmp_path, uri):
    root = make_nights(tmp_path / "results", nights=3)
    register(str(root), uri)
    check_snapshots(root, check_readers(root, uri))
    compact(str(root))
    check_readers(root, uri)  # the old files are still there
    register(str(root), uri)
    compact(str(root), CompactOptions(expire=True, grace_hours=0))
    check_readers(root, uri)


def test_duckdbs_own_extension_reads_the_table(tmp_path, uri):
    root = make_nights(tmp_path / "results", nights=3)
    register(str(root), uri)
    table = check_readers(root, uri)
    found = by_duckdbs_extension(table.metadata_location)
    assert values(found) == values(read_results(root).select(found.column_names))


@pytest.mark.chaos
@pytest.mark.slow
def test_twenty_nights_with_kills_leave_one_snapshot_each(tmp_path, uri):
    root = make_nights(tmp_path / "results", nights=1, rows=10)
    register(str(root), uri)
    killed = Counter()
    for number in range(2, 21):
        add_night(root, number, rows=10)
        name, nth = STEPS[number % len(STEPS)]
        killed[name] += kill_at(root, name, nth, register, uri)
        check_distinct(root, load(uri))
    assert {*killed} == {name for name, _ in STEPS}
    assert killed.total() == 19
    register(str(root), uri)
    check_snapshots(root, check_readers(root, uri))
