"""Retention: folders with data about people say when they were written, and are erased when they are too old."""

import logging
import posixpath
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import now
from fer_pipeline.labelling.run import READERS, RUN, Moment, RunFolder

log = logging.getLogger(__name__)
WRITTEN = "written.json"
"""Record in a folder that a command wrote for people: of crops, a review, an export, or copies with covered faces."""


class Written(Config):
    """`written.json`."""

    by: str
    """The command."""
    at: Moment


class Expired(Config):
    """What was erased, or would be."""

    folders: tuple[str, ...]
    files: int
    left: tuple[str, ...]
    """Folders that are left although nobody can say how old they are: unfinished runs, and damaged records."""


def new_folder(out: str, by: str) -> str:
    """Return the normalized place of a folder to write, which says from now on when it was written. `by`: the command.

    Raise UserError if it holds anything.
    """
    place = storage.normalize(out)
    if set(storage.list_names(place)) - {WRITTEN}:
        raise UserError(f"'{place}' is not a new or empty folder: choose another one.")
    mark(place, by)
    return place


def mark(folder: str, by: str) -> None:
    """Say in a folder when it was written."""
    storage.write_bytes(storage.join(folder, WRITTEN), Written(by=by, at=now()).model_dump_json(indent=2).encode())


def expire(place: str, days: int, dry_run: bool = False, table: str | None = None) -> Expired:
    """Erase the folders at or below a place that were finished more than `days` ago; with `dry_run` only count them.

    Those are run folders, and folders that say when they were written. `table`: only runs that were compared with this one.
    """
    until, found, left, files = datetime.now(UTC) - timedelta(days=days), list[str](), list[str](), 0
    for url, names in _folders(place):
        try:
            at, its_table = _written_at(url)
        except (UserError, ValidationError) as error:
            log.warning("'%s' is left: its record cannot be read (%s)", url, storage.reason(error)[:200])
            left.append(url)
            continue
        if table is not None and its_table != table:
            continue
        if at is None:
            log.warning("'%s' is left: this run is not finished; finish it, or delete its folder", url)
            left.append(url)
        elif at < until:
            found.append(url)
            files += len(names)
            if not dry_run:
                _erase(url, names)
    return Expired(folders=tuple(found), files=files, left=tuple(left))


def _folders(place: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each such folder, with the names of all files in it; a folder in another one belongs to that."""
    names = storage.list_below(place)
    records = {posixpath.dirname(name) for name in names if posixpath.basename(name) in (RUN, WRITTEN)}
    below: dict[str, list[str]] = {}
    for name in names:
        parents = name.split("/")[:-1]
        outer = ("/".join(parents[:count]) for count in range(len(parents) + 1))
        folder = next((one for one in outer if one in records), None)
        if folder is not None:
            below.setdefault(folder, []).append(posixpath.relpath(name, folder or "."))
    for folder, inner in below.items():
        yield storage.join(place, folder).rstrip("/"), inner


def _written_at(url: str) -> tuple[datetime | None, str | None]:
    """Return when a folder was finished, None for a run that is not, and the table of a run."""
    if record := RunFolder(url).load() if storage.exists(storage.join(url, RUN)) else None:
        finished = datetime.fromisoformat(record.result.finished_at) if record.result else None
        return finished, record.increment.table if record.increment else None
    return datetime.fromisoformat(Written.model_validate_json(storage.read_small(storage.join(url, WRITTEN))).at), None


def _erase(url: str, names: list[str]) -> None:
    """Delete the files of a folder, its record last, so that an erasure that is stopped can be repeated."""
    records = [name for name in names if name in (RUN, WRITTEN)]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda name: storage.remove(storage.join(url, name)), [name for name in names if name not in records]))
    for name in records:
        storage.remove(storage.join(url, name))
    if storage.is_local(url):
        shutil.rmtree(url)  # the folders that are empty now
