"""One Delta Lake table of labels, local or on S3: opening, making, reading what it holds, and committing to it.

The library keeps the log; files are read and written as all of the project's are (`core/storage.py`).
"""

import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from fer_pipeline.core import storage
from fer_pipeline.core.errors import UserError
from fer_pipeline.table.rows import ROWS, SCHEMA_VERSION

MAKER, NIGHT, COUNTER = "fer-pipeline.schema_version", "fer-pipeline.night", "fer-pipeline.commits"
"""What the table's configuration says of its schema, a commit's metadata of the night, and the log of commits by this project."""
CLASSES = "fer-pipeline.classes"
"""What the table's configuration says of `probabilities`: the classes that they are of, in order, as JSON."""
ENCODED = re.compile("%[0-9A-Fa-f]{2}")
"""What the library decodes once more than it was encoded: it would look for the table's log at another path than its own."""
FILE_NAME = re.compile(r"(?:[A-Za-z0-9=][\w.=-]*/)*[A-Za-z0-9=][\w.=-]*\.parquet")
"""A file of a table, in folders if need be: no scheme, no way up, nothing percent-encoded, nothing that readers pass over."""
TABLE_INDEXES = "_indexes"
"""Folder below the table, which its readers and `vacuum` pass over: what the containers of its sources hold."""
NO_TABLE = -1
"""The version of a table that is not there."""

CommitRefused = CommitFailedError
"""Another commit came first: nothing was written, look at the table as it is now and try again."""


@dataclass(frozen=True)
class TableFile:
    """A file that the table consists of, as the log describes it."""

    path: str
    """Below the table."""
    size_bytes: int
    rows: int
    first_uri: str | None
    last_uri: str | None


@dataclass(frozen=True)
class Changes:
    """What one commit does."""

    added: list[TableFile] = field(default_factory=list)
    removed: list[TableFile] = field(default_factory=list)


class LabelTable:
    """The table at `url` as it was when this object was made; `refreshed` looks again. It may not exist yet."""

    def __init__(self, url: str) -> None:
        """Raise UserError for a table of another maker, or of a later version of this project."""
        self.url = storage.normalize(url)
        if code := ENCODED.search(self.url):
            raise UserError(
                f"Delta Lake cannot read a table whose path holds '{code[0]}' ('{self.url}'): choose another --table."
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
            self._require_ours(self._delta)

    def _open(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(storage.encoded(self.url), version, storage_options(self.url))

    def _require_ours(self, delta: DeltaTable) -> None:
        schema_version = delta.metadata().configuration.get(MAKER)
        if schema_version is None:
            raise UserError(f"The table '{self.url}' was not made by fer-pipeline: choose another --table.")
        if int(schema_version) > SCHEMA_VERSION:
            raise UserError(f"The table '{self.url}' was made by a later version of fer-pipeline: use that one.")

    def refreshed(self) -> "LabelTable":
        """Return the table as it is now."""
        return LabelTable(self.url)

    @property
    def version(self) -> int:
        return NO_TABLE if self._delta is None else self._delta.version()

    @cached_property
    def files(self) -> list[TableFile]:
        """The files of this version."""
        if self._delta is None:
            return []
        found = []
        for one in pa.table(self._delta.get_add_actions()).to_pylist():
            require_file_names([one["path"]], self.url)
            first, last = ((one.get(limit) or {}).get("uri") for limit in ("min", "max"))
            found.append(TableFile(one["path"], one["size_bytes"], one.get("num_records") or 0, first, last))
        return sorted(found, key=lambda file: (file.first_uri or "", file.path))

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def path(self, *parts: str) -> str:
        """Return where something below the table stands."""
        return storage.join(self.url, *parts)

    def holds_run(self, run_id: str) -> bool:
        """Tell whether a run was published: the library accepts the same one twice."""
        return self._delta is not None and self._delta.transaction_version(run_id) is not None

    @property
    def classes(self) -> tuple[str, ...]:
        """What `probabilities` are those of, in order; empty where there is no table, or one of an earlier version."""
        configuration = {} if self._delta is None else self._delta.metadata().configuration
        return tuple(json.loads(configuration.get(CLASSES) or "[]"))

    def require_classes(self, classes: tuple[str, ...]) -> None:
        """Raise UserError for a model of other classes, or of another order: `probabilities` would mean two things."""
        if self.classes and classes and classes != self.classes:
            raise UserError(
                f"The table '{self.url}' holds probabilities of {', '.join(self.classes)}, the model's are of "
                f"{', '.join(classes)}: choose another --table, or a model of the same classes in the same order."
            )

    def _require_rows_of(self, classes: tuple[str, ...]) -> None:
        """Raise UserError where the probabilities of a row of the table are those of other classes, or of another order."""
        for file in self.files:
            lists = storage.read_columns(self.path(file.path), ["faces"])["faces"].combine_chunks()
            if len(faces := pc.list_flatten(lists)):
                face = faces[0].as_py()
                best = max(range(len(face["probabilities"])), key=face["probabilities"].__getitem__)
                if len(face["probabilities"]) != len(classes) or classes[best] != face["expression"]:
                    raise UserError(
                        f"The table '{self.url}' does not say what its probabilities are of, and they are not those of "
                        f"{', '.join(classes)} in this order: choose another --table, or the model that labelled it."
                    )
                return

    def make(self, classes: tuple[str, ...] = ()) -> "LabelTable":
        """Return the table, made where there is none; raise UserError on a store that cannot keep two writers apart."""
        if self._delta is not None:
            if classes and not self.classes:  # of an earlier version
                self._require_rows_of(classes)
                with suppress(CommitFailedError):  # another publisher was faster: what it wrote is looked at
                    self._delta.alter.set_table_properties({CLASSES: json.dumps(classes)}, raise_if_not_exists=False)
                table = self.refreshed()
                table.require_classes(classes)
                return table._with_all_columns()
            return self._with_all_columns()
        storage.require_exclusive_writes(self.url)
        configuration = {MAKER: str(SCHEMA_VERSION), "delta.dataSkippingNumIndexedCols": "3"}
        configuration |= {CLASSES: json.dumps(classes)} if classes else {}
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
            if self.refreshed()._delta is None:  # not made by another publisher meanwhile either
                raise
        return self.refreshed()

    def _with_all_columns(self) -> "LabelTable":
        """Add the columns that an older version did not have: null in its rows."""
        assert self._delta is not None
        has = {one.name for one in self._delta.schema().fields}
        missing = [one.with_nullable(True) for one in ROWS if one.name not in has]
        if not missing:
            return self
        fields = type(self._delta.schema()).from_arrow(pa.schema(missing)).fields
        self._delta.alter.add_columns(fields)
        return self.refreshed()

    def commit(self, changes: Changes, run_id: str | None, metadata: dict[str, Any]) -> None:
        """Make all changes at once; raise CommitRefused where the table is not any more as it was for this object.

        `run_id` is the run that is published by it; `metadata` stands in the table's history.
        """
        assert self._delta is not None
        now_ms = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(file.path, file.size_bytes, {}, now_ms, True, _statistics(file)) for file in changes.added
        ]
        actions += [RemoveAction(file.path, True, now_ms, file.size_bytes) for file in changes.removed]
        commits = (self._delta.transaction_version(COUNTER) or 0) + 1
        transactions = [Transaction(COUNTER, commits)] + ([Transaction(run_id, 1)] if run_id else [])
        properties = CommitProperties({NIGHT: json.dumps(metadata)}, max_commit_retries=0, app_transactions=transactions)
        try:
            self._delta.create_write_transaction(actions, "append", ROWS, commit_properties=properties)
        except CommitFailedError:
            raise
        except DeltaError as error:
            raise OSError(f"the commit to '{self.url}' failed: {storage.reason(error)[:300]}") from error

    def history(self, since: int = NO_TABLE) -> list[dict[str, Any]]:
        """Return the commits after the version `since`, the latest first: version, time in ms and operation.

        `night` is what a commit of this project says of itself; `restored` the version that one went back to.
        """
        if self._delta is None or self.version <= since:
            return []
        return [
            {
                "version": self.version - age,
                "timestamp": entry["timestamp"],
                "operation": entry["operation"],
                "night": json.loads(entry[NIGHT]) if NIGHT in entry else None,
                "restored": entry.get("operationParameters", {}).get("version") if entry["operation"] == "RESTORE" else None,
            }
            for age, entry in enumerate(self._delta.history(self.version - since))
        ]

    def nights_in(self, version: int) -> set[str]:
        """Return the run ids of the nights that a version holds: restoring undoes those that came after."""
        held: dict[int, set[str]] = {NO_TABLE: set()}
        for entry in reversed(self.history()):
            night, restored, before = entry["night"] or {}, entry["restored"], held.get(entry["version"] - 1, set())
            held[entry["version"]] = (
                held.get(int(restored), set()) if restored is not None else before | {*filter(None, [night.get("run_id")])}
            )
        return held.get(version, set())

    def restore(self, version: int) -> None:
        """Let the table be as it was, by a new commit."""
        assert self._delta is not None
        try:
            self._delta.restore(version)
        except (DeltaError, OSError) as error:
            raise UserError(
                f"Version {version} of '{self.url}' cannot be had any more: {storage.reason(error)[:300]}."
            ) from error

    def vacuum(self, retention_hours: int) -> int:
        """Delete files that no version of the last hours needs, and those as old that never came into one; return how many.

        They are counted here: the library tells of what its log names, wherever that would be.
        """
        assert self._delta is not None
        before = set(self.data_files())
        self._delta.vacuum(retention_hours, dry_run=False, enforce_retention_duration=False, full=True)
        return len(before - set(self.data_files()))

    def data_files(self) -> list[str]:
        """Return the paths of the Parquet files below the table, of all versions and of none, in folders too."""
        return [name for name in storage.list_below(self.url) if name.endswith(".parquet") and name[0] not in "_."]


def require_file_names(paths: Iterable[str], table: str) -> None:
    """Raise UserError unless paths, which a log or a run names, are plain ones of files below a table."""
    for path in paths:
        if not FILE_NAME.fullmatch(path):
            raise UserError(
                f"The table '{table}' names the file '{path[:200]}', which is none below it: somebody else wrote that. Nothing "
                "was read from there."
            )


def _statistics(file: TableFile) -> str:
    limits = {"minValues": {"uri": file.first_uri}, "maxValues": {"uri": file.last_uri}, "nullCount": {"uri": 0}}
    return json.dumps({"numRecords": file.rows, **limits})


def storage_options(url: str) -> dict[str, str]:
    """Return what the library must be told to reach a store: endpoint and credentials are taken from where s3fs takes them."""
    if storage.is_local(url):
        return {}
    session, region, endpoint = storage.aws_session()
    found = {"aws_region": region, "aws_endpoint": endpoint, "aws_conditional_put": "etag"}
    if endpoint.startswith("http://"):
        found["aws_allow_http"] = "true"
    if credentials := session.get_credentials():
        frozen = credentials.get_frozen_credentials()  # renewed where they expire
        found |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        found |= {"aws_session_token": frozen.token} if frozen.token else {}
    return found


def file_of(path: str, size_bytes: int, rows: pa.Table) -> TableFile:
    """Return the description of a file with these rows."""
    limits = pc.min_max(rows["uri"]).as_py()
    return TableFile(path, size_bytes, len(rows), limits["min"], limits["max"])
