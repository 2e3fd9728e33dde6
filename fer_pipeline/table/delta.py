"""A Delta Lake table of labels, local or on S3: open, create, read and commit.

The library maintains the log. Data files are read and written as all files of this project (`base/storage`).
"""

import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from fer_pipeline.base import storage
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.schema_version import require_readable
from fer_pipeline.base.storage import parquet, s3
from fer_pipeline.labelling.run import RUN
from fer_pipeline.table.rows import ROWS, SCHEMA_VERSION

SCHEMA_VERSION_KEY = "fer-pipeline.schema_version"
"""Key of the schema version in the table's configuration."""
CLASSES_KEY = "fer-pipeline.classes"
"""Key of the classes of `probabilities` in the table's configuration: in order, as JSON."""
NIGHT_KEY = "fer-pipeline.night"
"""Key of the night in a commit's metadata."""
COMMIT_COUNTER = "fer-pipeline.commits"
"""Id of the transaction that counts the commits of this project."""
FILE_NAME = re.compile(r"(?:[A-Za-z0-9=][\w.=-]*/)*[A-Za-z0-9=][\w.=-]*\.parquet")
"""A valid path of a data file: no scheme, no `..`, nothing percent-encoded, no name that readers ignore."""
TABLE_AUDITS = "_audits"
TABLE_CORRECTIONS = "_corrections"
"""Folder below the table with the answers of people. Readers and vacuum ignore names that begin with an underscore."""
TABLE_INDEXES = "_indexes"
"""Folder below the table with the indexes of its sources' containers. Readers and `vacuum` ignore it."""
NO_TABLE = -1
"""The version of a table that does not exist."""

CommitRefused = CommitFailedError
"""Another commit came first and nothing was written: read the table again and retry."""


@dataclass(frozen=True)
class TableFile:
    """A data file of the table, as the log describes it."""

    path: str
    """Path relative to the table."""
    size_bytes: int
    rows: int
    first_uri: str | None
    last_uri: str | None


@dataclass(frozen=True)
class Changes:
    """The files that one commit adds and removes."""

    added: list[TableFile] = field(default_factory=list)
    removed: list[TableFile] = field(default_factory=list)


class LabelTable:
    """The version of the table at `url` when this object was created; `refreshed` reads it again. It may not exist yet."""

    def __init__(self, url: str) -> None:
        """Raise UserError if another program, or a later version of this project, created the table."""
        self.url = storage.normalize(url)
        if code := re.search("%[0-9A-Fa-f]{2}", self.url):  # the library decodes it twice, and looks at another path
            raise UserError(
                f"Delta Lake cannot read a table whose path contains '{code[0]}' ('{self.url}'): choose another --table."
            )
        storage.require_access(self.url)
        try:
            self._delta: DeltaTable | None = self._open()
        except TableNotFoundError:
            self._delta = None
            if [name for name in storage.list_names(self.url) if not name.startswith(("_", "."))]:
                raise UserError(f"'{self.url}' holds files but no table: choose an empty folder for --table.") from None
        except DeltaError as error:
            raise OSError(f"the table '{self.url}' cannot be read: {storage.reason(error)[:300]}") from error
        if self._delta is not None:
            self._require_our_table(self._delta)

    def _open(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(storage.encoded(self.url), version, storage_options(self.url))

    def _require_our_table(self, delta: DeltaTable) -> None:
        schema_version = delta.metadata().configuration.get(SCHEMA_VERSION_KEY)
        if schema_version is None:
            raise UserError(f"The table '{self.url}' was not created by fer-pipeline: choose another --table.")
        found = int(schema_version) if schema_version.isdecimal() else schema_version
        what, remedy = f"The table '{self.url}'", "use that version."
        require_readable(found, range(1, SCHEMA_VERSION + 1), what, "another version of fer-pipeline", remedy)

    def refreshed(self) -> "LabelTable":
        """Return the current version of the table."""
        return LabelTable(self.url)

    def at(self, version: int) -> "LabelTable":
        """Return an earlier version of the table, to read. Raise UserError if its log is gone."""
        other = copy(self)
        other.__dict__.pop("files", None)
        try:
            other._delta = self._open(version)
        except (DeltaError, OSError) as error:
            raise UserError(f"Version {version} of '{self.url}' cannot be read: {storage.reason(error)[:300]}.") from error
        return other

    @property
    def version(self) -> int:
        return NO_TABLE if self._delta is None else self._delta.version()

    @cached_property
    def files(self) -> list[TableFile]:
        """The data files of this version, sorted by their first uri."""
        if self._delta is None:
            return []
        files = []
        for action in pa.table(self._delta.get_add_actions()).to_pylist():
            require_file_names([action["path"]], self.url)
            first, last = ((action.get(limit) or {}).get("uri") for limit in ("min", "max"))
            files.append(TableFile(action["path"], action["size_bytes"], action.get("num_records") or 0, first, last))
        return sorted(files, key=lambda file: (file.first_uri or "", file.path))

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def path(self, *parts: str) -> str:
        """Return the path or URL of `parts` below the table."""
        return storage.join(self.url, *parts)

    def holds_run(self, run_id: str) -> bool:
        """Return whether a run is already published. The library itself would accept it twice."""
        return self._delta is not None and self._delta.transaction_version(run_id) is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of `probabilities`, in order; empty for no table, or for a table of an earlier version."""
        configuration = {} if self._delta is None else self._delta.metadata().configuration
        return tuple(json.loads(configuration.get(CLASSES_KEY) or "[]"))

    def require_classes(self, classes: tuple[str, ...]) -> None:
        """Raise UserError if the classes or their order differ from the table's: `probabilities` would be ambiguous."""
        if self.classes and classes and classes != self.classes:
            raise UserError(
                f"The table '{self.url}' holds probabilities of {', '.join(self.classes)}, but the model's are of "
                f"{', '.join(classes)}: choose another --table, or a model with the same classes in the same order."
            )

    def _require_rows_of(self, classes: tuple[str, ...]) -> None:
        """Raise UserError if the first face of the table contradicts these classes in this order."""
        for file in self.files:
            lists = parquet.read_columns(self.path(file.path), ["faces"])["faces"].combine_chunks()
            if len(faces := pc.list_flatten(lists)):
                face = faces[0].as_py()
                best = max(range(len(face["probabilities"])), key=face["probabilities"].__getitem__)
                if len(face["probabilities"]) != len(classes) or classes[best] != face["expression"]:
                    raise UserError(
                        f"The table '{self.url}' does not name its classes, and its probabilities are not those of "
                        f"{', '.join(classes)} in this order: choose another --table, or the model that labelled it."
                    )
                return

    def make(self, classes: tuple[str, ...] = ()) -> "LabelTable":
        """Return the table. Create it if it does not exist. Raise UserError if the store has no conditional writes."""
        if self._delta is not None:
            if classes and not self.classes:  # created by an earlier version
                self._require_rows_of(classes)
                with suppress(CommitFailedError):  # another publisher was faster: its classes are checked below
                    self._delta.alter.set_table_properties({CLASSES_KEY: json.dumps(classes)}, raise_if_not_exists=False)
                table = self.refreshed()
                table.require_classes(classes)
                return table._with_all_columns()
            return self._with_all_columns()
        storage.require_exclusive_writes(self.url)
        configuration = {SCHEMA_VERSION_KEY: str(SCHEMA_VERSION), "delta.dataSkippingNumIndexedCols": "3"}
        configuration |= {CLASSES_KEY: json.dumps(classes)} if classes else {}
        try:
            DeltaTable.create(
                storage.encoded(self.url),
                ROWS,
                name="apparent expressions",
                configuration=configuration,
                storage_options=storage_options(self.url),
                raise_if_key_not_exists=False,
            )
        except DeltaError:
            if self.refreshed()._delta is None:  # no other publisher has created it either
                raise
        return self.refreshed()

    def _with_all_columns(self) -> "LabelTable":
        """Add the columns that older versions did not have. They are null in the old rows."""
        assert self._delta is not None
        existing = {one.name for one in self._delta.schema().fields}
        missing = [one.with_nullable(True) for one in ROWS if one.name not in existing]
        if not missing:
            return self
        fields = type(self._delta.schema()).from_arrow(pa.schema(missing)).fields
        self._delta.alter.add_columns(fields)
        return self.refreshed()

    def commit(self, changes: Changes, run_id: str | None, metadata: dict[str, Any]) -> None:
        """Apply all changes in one commit. Raise CommitRefused if the table has a newer version than this object.

        `run_id` is the run that the commit publishes; `metadata` is stored in the history of the table.
        """
        assert self._delta is not None
        now_ms = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(file.path, file.size_bytes, {}, now_ms, True, _statistics(file)) for file in changes.added
        ]
        actions += [RemoveAction(file.path, True, now_ms, file.size_bytes) for file in changes.removed]
        commits = (self._delta.transaction_version(COMMIT_COUNTER) or 0) + 1
        transactions = [Transaction(COMMIT_COUNTER, commits)] + ([Transaction(run_id, 1)] if run_id else [])
        properties = CommitProperties({NIGHT_KEY: json.dumps(metadata)}, max_commit_retries=0, app_transactions=transactions)
        try:
            self._delta.create_write_transaction(actions, "append", ROWS, commit_properties=properties)
        except CommitFailedError:
            raise
        except DeltaError as error:
            raise OSError(f"the commit to '{self.url}' failed: {storage.reason(error)[:300]}") from error

    def history(self, since: int = NO_TABLE) -> list[dict[str, Any]]:
        """Return the commits after version `since`, latest first: version, time in ms and operation.

        `night` is the metadata of a commit by this project; `restored` is the version that a commit restored.
        """
        if self._delta is None or self.version <= since:
            return []
        return [
            {
                "version": self.version - age,
                "timestamp": entry["timestamp"],
                "operation": entry["operation"],
                "night": json.loads(entry[NIGHT_KEY]) if NIGHT_KEY in entry else None,
                "restored": entry.get("operationParameters", {}).get("version") if entry["operation"] == "RESTORE" else None,
            }
            for age, entry in enumerate(self._delta.history(self.version - since))
        ]

    def nights_in(self, version: int) -> set[str]:
        """Return the run ids of the nights that a version holds. A restore undoes later nights."""
        held: dict[int, set[str]] = {NO_TABLE: set()}
        for entry in reversed(self.history()):
            night, restored, before = entry["night"] or {}, entry["restored"], held.get(entry["version"] - 1, set())
            held[entry["version"]] = (
                held.get(int(restored), set()) if restored is not None else before | {*filter(None, [night.get("run_id")])}
            )
        return held.get(version, set())

    def restore(self, version: int) -> None:
        """Restore an earlier version by a new commit. Raise UserError if its files are gone."""
        assert self._delta is not None
        try:
            self._delta.restore(version)
        except (DeltaError, OSError) as error:
            raise UserError(f"Version {version} of '{self.url}' cannot be restored: {storage.reason(error)[:300]}.") from error

    def vacuum(self, retention_hours: int) -> int:
        """Delete files that no version of the last hours needs, and uncommitted files of that age. Return their number.

        The number comes from the folder, because the library reports every path in its log, even one outside the table.
        """
        assert self._delta is not None
        before = set(self.data_files())
        self._delta.vacuum(retention_hours, dry_run=False, enforce_retention_duration=False, full=True)
        return len(before - set(self.data_files()))

    def data_files(self) -> list[str]:
        """Return the paths of all Parquet files at any depth below the table, those of no version included."""
        return [name for name in storage.list_below(self.url) if name.endswith(".parquet") and name[0] not in "_."]


def is_table(url: str) -> bool:
    """Tell whether there is a published table at `url` or a labelling run. Raise UserError if there is neither."""
    names = storage.list_names(url)
    if "_delta_log" not in names and RUN not in names:
        raise UserError(f"There is neither a labelling run nor a published table in '{url}': name the folder of one.")
    return "_delta_log" in names


def require_file_names(paths: Iterable[str], table: str) -> None:
    """Raise UserError unless all paths, which come from a log or a run, are valid data files below a table."""
    for path in paths:
        if not FILE_NAME.fullmatch(path):
            raise UserError(
                f"The table '{table}' names the file '{path[:200]}', which is not below it: somebody else wrote that. Nothing "
                "was read from that path."
            )


def _statistics(file: TableFile) -> str:
    limits = {"minValues": {"uri": file.first_uri}, "maxValues": {"uri": file.last_uri}, "nullCount": {"uri": 0}}
    return json.dumps({"numRecords": file.rows, **limits})


def storage_options(url: str) -> dict[str, str]:
    """Return the library's options for a store: the endpoint and credentials that `storage` uses."""
    if not url.startswith("s3://"):  # the library takes what it needs for clouds from the environment, as obstore does
        return {}
    session, region, endpoint = s3.aws_session()
    options = {"aws_region": region, "aws_endpoint": endpoint, "aws_conditional_put": "etag"}
    if endpoint.startswith("http://"):
        options["aws_allow_http"] = "true"
    if credentials := session.get_credentials():
        frozen = credentials.get_frozen_credentials()  # renewed if they expire
        options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        options |= {"aws_session_token": frozen.token} if frozen.token else {}
    return options


def file_of(path: str, size_bytes: int, rows: pa.Table) -> TableFile:
    """Return the description of a data file with these rows."""
    limits = pc.min_max(rows["uri"]).as_py()
    return TableFile(path, size_bytes, len(rows), limits["min"], limits["max"])
