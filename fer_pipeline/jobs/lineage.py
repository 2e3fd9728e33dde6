"""Lineage: what each job reads and writes, as OpenLineage events for a catalogue (https://openlineage.io/docs/spec/object-model).

$OPENLINEAGE_URL names where they go: an HTTP endpoint, or a file by a `file:` URL. Nothing else configures them: no file of the
current folder is read. An endpoint that fails costs a job nothing but its events. No event names a picture.
"""

import logging
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from uuid import uuid4

import pyarrow as pa
from pydantic import BaseModel

import fer_pipeline
from fer_pipeline.archive.formats import format_of
from fer_pipeline.archive.formats.images import IMAGE
from fer_pipeline.archive.formats.videos import VIDEO
from fer_pipeline.base import storage
from fer_pipeline.base.config import read_record
from fer_pipeline.base.errors import UserError, needs_package
from fer_pipeline.labelling.run import RunRecord
from fer_pipeline.labelling.schemas import FACES, IMAGES
from fer_pipeline.models.bundle import EMBEDDED
from fer_pipeline.table.audit import AUDIT, Audit
from fer_pipeline.table.delta import LabelTable
from fer_pipeline.table.nights import Night
from fer_pipeline.table.rows import ROWS

log = logging.getLogger(__name__)
URL, KEY, NAMESPACE = "OPENLINEAGE_URL", "OPENLINEAGE_API_KEY", "OPENLINEAGE_NAMESPACE"
OURS = "fer-pipeline"
"""The default namespace of jobs, and that of models without a place."""
PRODUCER = f"urn:{OURS}:{fer_pipeline.__version__}"
RUNNING_S = 60.0
"""Interval of the events of a job that runs."""
SEND_S, LAST_SEND_S = 3.0, 6.0
"""Time limit of one event, and of all that are left when the job has ended."""
OF_PICTURE = ("x", "y", "w", "h", "detection_score", "landmarks", "quality")
OF_MODEL = ("expression", "confidence", "uncertain", "probabilities")
"""Columns of a face that come from the picture, and from the picture and the model."""
Options = ParamSpec("Options")
Result = TypeVar("Result")
Job = TypeVar("Job", bound=BaseModel)


def traced(
    name: str, inputs: Sequence[str], outputs: Sequence[str]
) -> Callable[[Callable[Concatenate[Job, Options], Result]], Callable[Concatenate[Job, Options], Result]]:
    """Have a job tell what it does. `inputs`, `outputs`: options of its configuration that name places, or a model."""

    def wrap(run: Callable[Concatenate[Job, Options], Result]) -> Callable[Concatenate[Job, Options], Result]:
        @wraps(run)
        def told(config: Job, *others: Options.args, **named: Options.kwargs) -> Result:
            if not os.environ.get(URL):
                return run(config, *others, **named)
            with _telling(_Run(name, config, inputs, outputs, _current.get())) as one:
                result = run(config, *others, **named)
                one.result = result
                return result

        return cast(Callable[Concatenate[Job, Options], Result], told)

    return wrap


class _Sender:
    """Sends events, one after the other, in a thread. After the first that fails, none is sent any more."""

    def __init__(self) -> None:
        self._transport, self._events, self._failed = _transport(), SimpleQueue[Any](), False
        self._thread = Thread(target=self._send, name="lineage", daemon=True)
        self._thread.start()

    def add(self, event: Any) -> None:
        self._events.put(event)

    def _send(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                if not self._failed:
                    self._transport.emit(event)
            except Exception as error:  # noqa: BLE001 (whatever an endpoint does, the job goes on)
                self._failed = True
                log.warning("The lineage of this job is lost, the job goes on: %s", storage.reason(error)[:200])

    def close(self) -> None:
        self._events.put(None)
        self._thread.join(LAST_SEND_S)


def _transport() -> Any:
    """Return the transport of $OPENLINEAGE_URL. Raise UserError if it is no such URL, or the package is missing."""
    url = os.environ[URL]
    try:
        from openlineage.client.event_v2 import set_producer
        from openlineage.client.transport.file import FileConfig, FileTransport
        from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider
    except ImportError as error:
        raise needs_package(f"${URL}", error) from error
    set_producer(PRODUCER)
    if url.startswith("file:"):
        return FileTransport(FileConfig(log_file_path=url, append=True))
    if not url.startswith(("http://", "https://")):
        raise UserError(f"${URL} is neither an http:// or https:// URL nor a file: URL, such as file:///var/log/lineage.jsonl.")
    key = os.environ.get(KEY)
    auth = ApiKeyTokenProvider({"apiKey": key}) if key else TokenProvider({})
    return HttpTransport(HttpConfig(url=url, timeout=SEND_S, auth=auth, retry={"total": 0}))


@dataclass
class _Run:
    """One run of a job."""

    name: str
    config: Any
    inputs: Sequence[str]
    outputs: Sequence[str]
    parent: "_Run | None"
    run_id: str = field(default_factory=lambda: str(uuid4()))
    result: Any = None
    _own: _Sender | None = None

    @property
    def sender(self) -> _Sender:
        """The sender, which a run and the runs in it share."""
        if self.parent:
            return self.parent.sender
        if self._own is None:
            self._own = _Sender()
        return self._own

    def tell(self, state: str, error: BaseException | None = None) -> None:
        """Send an event; what cannot be told is left out."""
        try:
            self.sender.add(_event(self, state, error))
        except UserError:
            raise
        except Exception as fault:  # noqa: BLE001 (lineage costs no job)
            log.warning("An event of this job's lineage is lost: %s", storage.reason(fault)[:200])


_current: ContextVar[_Run | None] = ContextVar("current", default=None)


@contextmanager
def _telling(run: _Run) -> Iterator[_Run]:
    """Tell the start, the course and the end of a run."""
    run.tell("START")
    token, over = _current.set(run), Event()

    def go_on() -> None:
        while not over.wait(RUNNING_S):
            run.tell("RUNNING")

    Thread(target=go_on, name="lineage-running", daemon=True).start()
    try:
        yield run
    except BaseException as error:
        run.tell("FAIL" if isinstance(error, Exception) else "ABORT", error)
        raise
    else:
        run.tell("COMPLETE")
    finally:
        over.set()
        _current.reset(token)
        if not run.parent:
            run.sender.close()


def _event(run: _Run, state: str, error: BaseException | None) -> Any:
    from openlineage.client.event_v2 import Job as JobOf
    from openlineage.client.event_v2 import Run, RunEvent, RunState
    from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run, processing_engine_run

    namespace = os.environ.get(NAMESPACE) or OURS
    facets: dict[str, Any] = {"processing_engine": processing_engine_run.ProcessingEngineRunFacet(fer_pipeline.__version__, OURS)}
    if run.parent:
        of = parent_run.Run(run.parent.run_id), parent_run.Job(namespace, run.parent.name)
        facets["parent"] = parent_run.ParentRunFacet(*of)
    if error is not None:  # its text may name pictures
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(type(error).__name__, "PYTHON")
    inputs, outputs = _datasets(run, state in ("COMPLETE", "FAIL"))
    return RunEvent(
        eventType=RunState[state],
        eventTime=datetime.now(UTC).isoformat(),
        run=Run(run.run_id, facets),
        job=JobOf(namespace, run.name, {"jobType": job_type_job.JobTypeJobFacet("BATCH", OURS, "JOB")}),
        producer=PRODUCER,
        inputs=inputs,
        outputs=outputs,
    )


def _datasets(run: _Run, at_end: bool) -> tuple[list[Any], list[Any]]:
    """Return the inputs and outputs of a run; at its end with what is known of them."""
    from openlineage.client.event_v2 import InputDataset, OutputDataset

    read = [_place(name, value) for name in run.inputs for value in _values(run.config, name)]
    inputs = [InputDataset(*place) for place in read]
    written = [_place(name, value) for name in run.outputs for value in _values(run.config, name)]
    if isinstance(run.result, RunRecord) and run.result.result:
        (namespace, out), result = written[0], run.result.result
        tables = (("images", IMAGES, run.result.records), ("faces", FACES, result.faces))
        return inputs, [
            OutputDataset(namespace, f"{out}/{name}", _rows(count), facets=_columns(schema, read))
            for name, schema, count in tables
        ]
    outputs = [OutputDataset(*place) for place in written]
    if at_end and run.name in ("publish", "nightly"):
        folder = run.result.folder if isinstance(run.result, Night) else getattr(run.config, "run", None)
        inputs[0].inputFacets = _assertions(folder)
        if isinstance(run.result, Night):
            outputs[0].facets = _columns(ROWS, read) | _version(run.config.table)
            outputs[0].outputFacets = _rows(run.result.records)
    return inputs, outputs


def _values(config: Any, name: str) -> list[str]:
    value = getattr(config, name)
    return [value] if isinstance(value, str) else list(value or ())


def _place(option: str, value: str) -> tuple[str, str]:
    """Return namespace and name of a dataset (https://openlineage.io/docs/spec/naming); of a picture those of its folder."""
    if option == "model" and (value == EMBEDDED or ("@" in value and "/" not in value)):
        return OURS, value
    place = storage.normalize(value)
    if format_of(place) in (IMAGE, VIDEO):
        place = posixpath.dirname(place)
    if storage.is_local(place):
        return "file", place
    scheme, _, rest = place.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key or "/"


def _columns(schema: pa.Schema, read: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the columns of a table, and from what those of faces come: the picture and, second of what is read, the model."""
    from openlineage.client.facet_v2 import column_lineage_dataset, schema_dataset

    fields = [schema_dataset.SchemaDatasetFacetFields(one.name, str(one.type)) for one in schema]
    facets: dict[str, Any] = {"schema": schema_dataset.SchemaDatasetFacet(fields)}
    names = ["image", "weights"][: len(read)]
    sources = [column_lineage_dataset.InputField(*place, name) for place, name in zip(read, names, strict=False)]
    if len(sources) == 2:
        columns = [(name, sources[:1]) for name in OF_PICTURE] + [(name, sources) for name in (*OF_MODEL, "faces")]
        lineage = {name: column_lineage_dataset.Fields(of) for name, of in columns if name in schema.names}
        facets["columnLineage"] = column_lineage_dataset.ColumnLineageDatasetFacet(lineage)
    return facets


def _rows(count: int) -> dict[str, Any]:
    from openlineage.client.facet_v2 import output_statistics_output_dataset

    return {"outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=count)}


def _version(table: str) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(str(LabelTable(table).version))}


def _assertions(folder: str | None) -> dict[str, Any]:
    """Return the checks of the audit of a run; nothing if it was not audited."""
    from openlineage.client.facet_v2 import data_quality_assertions_dataset as quality

    place = folder and storage.join(storage.normalize(folder), AUDIT)
    if not place or not storage.exists(place):
        return {}
    checks = read_record(place, Audit, "audit").checks
    found = [
        quality.Assertion(check.name, check.passed, expected=f"at most {check.limit:g}", actual=_text(check.value))
        for check in checks
    ]
    return {"dataQualityAssertions": quality.DataQualityAssertionsDatasetFacet(found)}


def _text(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"
