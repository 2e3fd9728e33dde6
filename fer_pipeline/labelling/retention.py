"""Retention: folders with data about people say when they were written, and are erased when they are too old."""

import logging
import posixpath
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config, read_record
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.identity import now
from fer_pipeline.labelling.run import READERS, RUN, Moment, RunFolder

log = logging.getLogger(__name__)
MOST_DAYS = 36_500
WRITTEN = "written.json"
"""Record in a folder that a command wrote for people: of crops, a review, an export, or copies with covered faces."""


class Written(Config):
    """`written.json`."""

    by: str
    """The command."""
    at: Moment | None
    """When it was finished; null before."""


class Expired(Config):
    """What was erased, or would be."""

    folders: tuple[str, ...]
    files: int
    left: tuple[str, ...]
    """Folders that are left, for which the log has the reasons: what is unfinished, damaged, held, or holds a table."""


def new_folder(out: str) -> str:
    """Return the normalized place of a folder to write. Raise UserError if it holds anything."""
    place = storage.normalize(out)
    if set(storage.list_names(place)) - {WRITTEN}:
        raise UserError(f"'{place}' is not a new or empty folder: choose another one.")
    return place


def mark(folder: str, by: str, finished: bool = True) -> None:
    """Say in a folder when the command `by` wrote it. Call it before the first file, not `finished`, and after the last."""
    written = Written(by=by, at=now() if finished else None)
    storage.write_bytes(storage.join(folder, WRITTEN), written.model_dump_json(indent=2).encode())


def expire(place: str, days: int, dry_run: bool = False, why_not: Callable[[str], str | None] = lambda url: None) -> Expired:
    """Erase the folders at or below a place that were finished more than `days` ago; with `dry_run` only count them.

    Those are run folders, and folders that say when they were written. `why_not` returns why one must stay, if it must. One
    that cannot be erased stays, with a warning.
    """
    until, found, left, files = datetime.now(UTC) - timedelta(days=days), list[str](), list[str](), 0
    if not storage.exists(place):
        raise UserError(f"There is nothing at '{place}': name the folder or URL of what is to be erased.")
    for url, names in _folders(place):
        try:
            newest = max(_finished_at(storage.join(url, name)) for name in names if _is_record(name))
            if newest >= until:
                continue
            if any("_delta_log" in name.split("/") for name in names):
                raise ValueError("a table is in it")
            if reason := why_not(url):
                raise ValueError(reason)
            if not dry_run:
                _erase(url, names)
        except (UserError, ValueError, TypeError, *storage.STORAGE_ERRORS) as error:
            log.warning("'%s' stays: %s", url, storage.reason(error)[:200])
            left.append(url)
        else:
            found.append(url)
            files += len(names)
    return Expired(folders=tuple(found), files=files, left=tuple(left))


def _is_record(name: str) -> bool:
    return posixpath.basename(name) in (RUN, WRITTEN)


def _folders(place: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each such folder, with the names of all files in it; a folder in another one belongs to that."""
    names = storage.list_below(place)
    records = {posixpath.dirname(name) for name in names if _is_record(name)}
    below: dict[str, list[str]] = {}
    for name in names:
        parents = name.split("/")[:-1]
        outer = ("/".join(parents[:count]) for count in range(len(parents) + 1))
        folder = next((one for one in outer if one in records), None)
        if folder is not None:
            below.setdefault(folder, []).append(posixpath.relpath(name, folder or "."))
    for folder, inner in below.items():
        yield storage.join(place, folder).rstrip("/"), inner


def _finished_at(record: str) -> datetime:
    """Return when a folder was finished, by its record. Raise ValueError if it is not."""
    folder, name = posixpath.split(record)
    if name == RUN:
        run = RunFolder(folder).load()
        at = run.result.finished_at if run and run.result else None
    else:
        at = read_record(record, Written, "record of when a folder was written").at
    if at is None:
        raise ValueError(f"'{folder}' is not finished: finish or delete it")
    return datetime.fromisoformat(at)


def _erase(url: str, names: list[str]) -> None:
    """Delete the files of a folder, its record last, so that an erasure that is stopped can be repeated."""
    records = sorted(filter(_is_record, names), key=lambda name: -name.count("/"))
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda name: storage.remove(storage.join(url, name)), [name for name in names if name not in records]))
    for name in records:
        storage.remove(storage.join(url, name))
    if storage.is_local(url) and not Path(url).is_symlink():
        shutil.rmtree(url)  # the folders that are empty now
