"""A results folder as an Apache Iceberg table: its files are registered, none is copied.

Each generation becomes one snapshot, which carries its run id: a run is registered exactly once,
whatever is killed in between. After a compaction one snapshot exchanges the old files for the new.
The table has all rows, current or not; the newest `scored_at` of each `(uri, frame)` is current.
Maps are left out of the schema: Iceberg has no half-precision numbers.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from braintumor_ray.archive.records import REGISTERED, delete_unfinished, identity_of
from braintumor_ray.errors import BrainTumorError, ResultsError, UsageError, first_line
from braintumor_ray.extras import require
from braintumor_ray.lease import lease_on
from braintumor_ray.predict.results import (
    ResultsFolder,
    committed_runs,
    first_generation,
    is_compacted,
    results_folder,
    row_files,
)
from braintumor_ray.predict.schema import result_schema
from braintumor_ray.storage import (
    CONNECT_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    absolute,
    is_uri,
    open_filesystem,
    s3_endpoint,
    without_password,
)

TABLE = "braintumor.scans"
CATALOG_NAME = "default"  # SQL catalogs keep tables by this name too; it is what pyiceberg assumes
RUN, SPAN = "braintumor-ray.run-id", "braintumor-ray.generations"
OWNER = "braintumor-ray.results"
NAME_MAPPING = "schema.name-mapping.default"
FOREIGN_ID = 10_000  # ids of columns that the table does not have, so that readers skip them


@dataclass(frozen=True)
class Registration:
    """What `register` did.

    Attributes:
        table: its name in the catalog.
        snapshots: committed now.
        generations: runs that they add.
        files: of rows, that the table lists now.
    """

    table: str
    snapshots: int
    generations: int
    files: int


def register(
    results: str, catalog_uri: str, table: str = TABLE, warehouse: str | None = None
) -> Registration:
    """Make an Iceberg table agree with a results folder; calling it again adds what is new.

    Args:
        results: the folder or URI.
        catalog_uri: of a SQL catalog (`sqlite:///FILE`, `postgresql+psycopg2://...`) or of a REST
            catalog (`http://...`, `https://...`).
        table: `NAMESPACE.NAME`, made if it is not there.
        warehouse: where the table's metadata go, a name where a REST catalog knows it by one;
            None: `RESULTS/iceberg`, or as a REST catalog decides.

    Raises:
        ResultsError: nothing is committed, another job holds the folder, the catalog does not
            answer, or the table has another schema or belongs to another folder.
        UsageError: pyiceberg is not installed, the table's name has no namespace, or a folder's
            name has a `#` or `?`.
    """
    require("pyiceberg")
    if not re.fullmatch(r"[^.\s]+(\.[^.\s]+)+", table):
        raise UsageError(f"--table '{table}' is no NAMESPACE.NAME, such as {TABLE}")
    folder = results_folder(results)
    committed_runs(folder)
    _check_address(f"results '{results}'", folder_path(folder, ""))
    if warehouse and not _is_rest(catalog_uri):
        _check_address(f"--warehouse '{warehouse}'", _as_uri(warehouse))
        warehouse = _as_uri(warehouse)
    with _as_results_errors(catalog_uri, table), lease_on(folder.location):
        delete_unfinished(folder, REGISTERED)
        found = _open_table(folder, catalog_uri, table, warehouse)
        manifests = committed_runs(folder)
        record = f"{hashlib.sha256(f'{catalog_uri} {table}'.encode()).hexdigest()[:16]}.json"
        _hold(folder, record, table, manifests, also=True)
        added = [_add(folder, found, manifest) for manifest in manifests]
        _hold(folder, record, table, manifests, also=False)
        files = sum(len(row_files(manifest)) for manifest in manifests)
        return Registration(table, sum(n > 0 for n in added), sum(added), files)


def _check_address(what: str, location: str) -> None:
    """Refuse what Iceberg, which reads every location as a web address, would cut short."""
    parts = urlsplit(location)
    if parts.query or parts.fragment or parts.geturl() != location:
        raise UsageError(
            f"{what} cannot be registered: in an address of Iceberg '#' and '?' end the path; "
            "rename the folder or choose another"
        )


def iceberg_schema(folder: ResultsFolder) -> pa.Schema:
    """The table's columns: those of the rows without the maps, all of them optional."""
    meta = folder.meta
    columns = result_schema(
        tuple(meta["cam_shape"]), meta["cam_methods"], meta.get("optional_columns", ())
    )
    kept = [field for field in columns if not _is_map(field)]
    return pa.schema([pa.field(field.name, field.type) for field in kept])


def _is_map(field: pa.Field) -> bool:
    return pa.types.is_list(field.type) and pa.types.is_float16(field.type.value_type)


def _add(folder: ResultsFolder, table: Any, manifest: dict[str, Any]) -> int:  # noqa: ANN401
    """Commit one manifest as a snapshot unless it is there; how many generations are new."""
    there = {task.file.file_path: task.file for task in table.scan().plan_files()}
    wanted = {folder_path(folder, path) for path in row_files(manifest)}
    run = identity_of(manifest)
    if wanted <= there.keys() or run in _registered_runs(table):
        return 0
    first, last = first_generation(manifest), int(manifest["generation"])
    replaced = [file for path, file in there.items() if _is_within(path, first, last)]
    known = max([0, *(_span(file.file_path)[1] for file in replaced)])
    properties = {RUN: run, SPAN: f"{first}-{last}"}
    if is_compacted(manifest):
        properties["braintumor-ray.compaction"] = str(manifest["compaction"])
    files = [_data_file(folder, table, file) for file in manifest["files"]]
    with table.transaction() as transaction:
        update = transaction.update_snapshot(snapshot_properties=properties)
        with update.overwrite() if replaced else update.fast_append() as snapshot:
            for file in replaced:
                snapshot.delete_data_file(file)
            for file in files:
                snapshot.append_data_file(file)
    return last - max(first - 1, known) if known < last else 1


def _registered_runs(table: Any) -> set[str]:  # noqa: ANN401 - pyiceberg is optional
    summaries = (s.summary for s in table.metadata.snapshots if s.summary)
    return {str(s.additional_properties.get(RUN)) for s in summaries}


_FOLDER = re.compile(r"/rows/(\d{6,})(?:-(\d{6,})-[0-9a-f]+)?/[^/]+$")


def _span(path: str) -> tuple[int, int]:
    """The generations of a file of rows, by its folder's name; (0, 0) of a foreign file."""
    found = _FOLDER.search(path)
    if not found:
        return 0, 0
    return int(found[1]), int(found[2] or found[1])


def _is_within(path: str, first: int, last: int) -> bool:
    start, end = _span(path)
    return first <= start and end <= last and start > 0


def folder_path(folder: ResultsFolder, path: str) -> str:
    """A file of the folder as Iceberg names it: an absolute URI."""
    return _as_uri(folder.at(path))


def _as_uri(location: str) -> str:
    """A location that means the same wherever the table is opened: it is kept in its metadata."""
    whole = absolute(location)
    return whole if is_uri(whole) else f"file://{whole}"


def _data_file(folder: ResultsFolder, table: Any, file: dict[str, Any]) -> Any:  # noqa: ANN401
    """What Iceberg keeps of a file: its rows, bytes, and limits of its columns."""
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

    filesystem, path = open_filesystem(folder.at(file["path"]))
    metadata = pq.read_metadata(path, filesystem=filesystem)
    schema = table.schema()
    plan = compute_statistics_plan(schema, table.metadata.properties)
    ids = parquet_path_to_id_mapping(schema)
    _skip_foreign(metadata, plan, ids)
    statistics = data_file_statistics_from_parquet_metadata(metadata, plan, ids)
    kept = statistics.to_serialized_dict()
    kept["column_sizes"] = {k: v for k, v in kept["column_sizes"].items() if k < FOREIGN_ID}
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=folder_path(folder, file["path"]),
        file_format=FileFormat.PARQUET,
        partition=statistics.partition(table.spec(), schema),
        file_size_in_bytes=filesystem.get_file_info(path).size,
        sort_order_id=None,
        spec_id=table.spec().spec_id,
        equality_ids=None,
        key_metadata=None,
        **kept,
    )


def _skip_foreign(metadata: Any, plan: dict[int, Any], ids: dict[str, int]) -> None:  # noqa: ANN401
    """Columns that the table does not have get an id that takes no statistics."""
    from pyiceberg.io.pyarrow import StatisticsCollector
    from pyiceberg.types import FloatType

    none = _no_metrics()
    for number in range(metadata.num_columns):
        path = metadata.schema.column(number).path
        if path not in ids:
            ids[path] = FOREIGN_ID + number
            plan[ids[path]] = StatisticsCollector(
                field_id=ids[path], iceberg_type=FloatType(), mode=none, column_name=path
            )


def _no_metrics() -> Any:  # noqa: ANN401 - as above
    from pyiceberg.io.pyarrow import MetricModeTypes, MetricsMode

    return MetricsMode(MetricModeTypes.NONE)


def _open_table(folder: ResultsFolder, catalog_uri: str, name: str, warehouse: str | None) -> Any:  # noqa: ANN401 - as above
    catalog = _catalog(folder, catalog_uri, warehouse)
    schema = iceberg_schema(folder)
    owner = folder_path(folder, "")
    if not catalog.table_exists(name):
        catalog.create_namespace_if_not_exists(name.rsplit(".", 1)[0])
        made = catalog.create_table(name, schema, properties={OWNER: owner})
        with made.transaction() as transaction:
            transaction.set_properties({NAME_MAPPING: _name_mapping(folder, made)})
    table = catalog.load_table(name)
    if table.properties.get(OWNER) != owner:
        raise ResultsError(
            f"table '{name}' belongs to results '{table.properties.get(OWNER)}', not to "
            f"'{owner}'; choose another --table"
        )
    found = {field.name: str(field.field_type) for field in table.schema().fields}
    _check_columns(name, schema, found)
    return table


def _check_columns(name: str, schema: pa.Schema, found: dict[str, str]) -> None:
    from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids
    from pyiceberg.schema import assign_fresh_schema_ids

    fresh = assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(schema))
    wanted = {field.name: str(field.field_type) for field in fresh.fields}
    for column, kind in wanted.items():
        if re.sub(r"\d+: ", "", found.get(column, "missing")) != re.sub(r"\d+: ", "", kind):
            raise ResultsError(
                f"table '{name}' has column '{column}' as {found.get(column, 'missing')}, the "
                f"rows have {kind}; choose another --table"
            )


def _name_mapping(folder: ResultsFolder, table: Any) -> str:  # noqa: ANN401 - as above
    """Columns by name, as the files carry no ids; maps get ids that the schema does not have."""
    fields = json.loads(table.schema().name_mapping.model_dump_json())
    for number, name in enumerate(folder.meta["cam_methods"]):
        own = FOREIGN_ID + 2 * number
        inner = [{"field-id": own + 1, "names": ["element"]}]
        fields.append({"field-id": own, "names": [name], "fields": inner})
    return json.dumps(fields)


def _catalog(folder: ResultsFolder, uri: str, warehouse: str | None) -> Any:  # noqa: ANN401
    from pyiceberg.catalog import load_catalog

    properties = {"uri": uri}
    endpoint = s3_endpoint()
    if endpoint:  # pyiceberg does not look for it in the environment
        properties["s3.endpoint"] = endpoint
    rest = _is_rest(uri)
    warehouse = warehouse or (None if rest else folder_path(folder, "iceberg"))
    if warehouse:
        properties["warehouse"] = warehouse
    if rest:
        return _rest_catalog(properties)
    return load_catalog(CATALOG_NAME, type="sql", **properties)


def _is_rest(catalog_uri: str) -> bool:
    return catalog_uri.startswith(("http://", "https://"))


def _rest_catalog(properties: dict[str, str]) -> Any:  # noqa: ANN401 - as above
    """A REST catalog that is given up when it does not answer: pyiceberg's waits for ever."""
    from pyiceberg.catalog.rest import RestCatalog
    from requests import Response, Session
    from requests.adapters import HTTPAdapter

    class TimeoutAdapter(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> Response:  # type: ignore[override]  # noqa: ANN401
            limits = options.pop("timeout", None) or (CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S)
            return super().send(request, timeout=limits, **options)

    class Rest(RestCatalog):  # type: ignore[misc]  # pyiceberg is not typed here
        def _create_session(self) -> Session:
            session: Session = super()._create_session()
            for scheme in ("http://", "https://"):
                session.mount(scheme, TimeoutAdapter())
            return session

    return Rest(CATALOG_NAME, **properties)


def _hold(
    folder: ResultsFolder,
    name: str,
    table: str,
    manifests: Sequence[dict[str, Any]],
    *,
    also: bool,
) -> None:
    """Note which manifests' files the table lists, so that `compact --expire` keeps them."""
    holds = {identity_of(manifest) for manifest in manifests}
    if also and name in folder.names(REGISTERED):
        holds |= set(folder.read_json(REGISTERED, name)["holds"])
    folder.write_json({"table": table, "holds": sorted(holds)}, REGISTERED, name)


@contextmanager
def _as_results_errors(uri: str, table: str) -> Iterator[None]:
    """A catalog that does not answer, and a disk that is full, as one line."""
    try:
        yield
    except BrainTumorError:
        raise
    except Exception as error:  # of SQLAlchemy, requests and pyiceberg, which share no class
        line = first_line(error)
        raise ResultsError(
            f"catalog '{without_password(uri)}', table '{table}': {without_password(line)}; what "
            "was committed there is kept: mend the cause and run 'register' again"
        ) from error
