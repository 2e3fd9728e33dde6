"""Erases rows from all versions of a table, all rows of a uri or of an image's bytes, and blocks those bytes for the future."""

from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from fer_pipeline.base import storage
from fer_pipeline.base.config import Config
from fer_pipeline.base.errors import UserError
from fer_pipeline.base.storage import parquet
from fer_pipeline.labelling import audits
from fer_pipeline.labelling.corrections import erase_corrections, erasure
from fer_pipeline.table.blocklist import ENTRIES, block, read_blocklist
from fer_pipeline.table.data_files import write_file
from fer_pipeline.table.delta import TABLE_AUDITS, TABLE_CORRECTIONS, Changes, LabelTable
from fer_pipeline.table.rows import ROWS

_COLUMNS = ["uri", *ENTRIES.names]
_FACTS = pa.schema([ROWS.field(name) for name in _COLUMNS])


class Forgotten(Config):
    """The result of an erasure."""

    rows: int
    files_deleted: int
    """Files that held the rows. Versions that include one of them cannot be read any more."""
    blocked: int
    """Contents that will not be labelled again, under whatever name."""
    says: str


def forget(table: LabelTable, uris: tuple[str, ...], contents: tuple[str, ...]) -> Forgotten:
    """Erase the corrections of these rows, block their contents, commit the table without them and their copies, then delete
    every file that holds one.

    A uri may be the end of a path if only one file of the table has it. Raise UserError if no row and no correction matches.
    The commit comes before any deletion. It makes the commit of a concurrent publisher fail, which then writes its files again.
    """
    known = sorted({*table.data_files(), *(file.path for file in table.files)})
    uris = tuple(_resolved(table, known, uri) for uri in uris)
    of_uris = [_matching(table.path(name), uris, ()) for name in known] if uris else []
    contents = tuple({*contents, *(digest for rows in of_uris for digest in rows["content_sha256"].drop_null().to_pylist())})
    found = {name: rows for name in known if len(rows := _matching(table.path(name), uris, contents))}
    erased = pa.concat_tables([_FACTS.empty_table(), *found.values()])
    frames = {erasure({"content_sha256": None, "uri": uri}) for uri in _of_frames(erased)}
    corrections = _erase_corrections(table, uris, contents, frames)
    if not found and not corrections:
        raise UserError(f"The table '{table.url}' holds no such row in any version.")
    block(
        table.url,
        erased.group_by("content_sha256", use_threads=False).aggregate([("phash", "first")]).rename_columns(ENTRIES.names),
    )
    changes, rows = Changes(), 0
    for file in table.files:
        if file.path in found:
            whole = parquet.read_table(table.path(file.path))
            rest = write_file(table.url, "forget", whole.filter(pc.invert(_matches(whole, uris, contents))))
            rows += len(found[file.path])
            changes.removed.append(file)
            changes.added.extend([rest] if rest else [])
    if found:
        table.commit(changes, None, {"forgot": rows})
    for name in found:
        storage.remove(table.path(name))
    _erase_corrections(table, uris, contents, frames)  # what a publisher brought meanwhile
    blocked = len(pc.unique(erased["content_sha256"].drop_null()))
    says = f"{len(found)} files are deleted: reading an older version that includes one of them fails from now on"
    if pc.any(pc.is_null(erased["content_sha256"])).as_py():
        says += "; frames of videos, and records that were never read, are not blocked: delete their files, or --exclude them"
    return Forgotten(rows=rows, files_deleted=len(found), blocked=blocked, says=says)


def _of_frames(erased: pa.Table) -> set[str]:
    """Return the files of rows without content: frames, and what was never read."""
    return set(erased.filter(pc.is_null(erased["content_sha256"]))["uri"].to_pylist())


def _erase_corrections(table: LabelTable, uris: Collection[str], contents: Collection[str], frames: set[str]) -> set[str]:
    """Delete the corrections and audits of these files and contents; block them, and those of `frames`, for good."""
    erased = audits.erase(storage.join(table.url, TABLE_AUDITS), uris, contents)
    erased |= erase_corrections(storage.join(table.url, TABLE_CORRECTIONS), uris, contents)
    if fresh := sorted((erased | frames) - read_blocklist(table.url).contents):
        block(table.url, pa.table({"content_sha256": fresh}))
    return erased


def _resolved(table: LabelTable, names: Iterable[str], text: str) -> str:
    """Return the uri that a text names: a whole one, or the end of the only one that ends with it."""
    found = set[str]()
    for name in names:
        uris = parquet.read_columns(table.path(name), ["uri"])["uri"]
        found.update(pc.unique(uris.filter(pc.or_(pc.equal(uris, text), pc.ends_with(uris, f"/{text}")))).to_pylist())
    place = text if text in found else storage.normalize(text)
    if place in found or len(found) == 1:
        return place if place in found else found.pop()
    if found:
        raise UserError(f"'{text}' is the end of {len(found)} files ({', '.join(sorted(found)[:5])}, ...): name a longer path.")
    return place


def _matching(path: str, uris: tuple[str, ...], contents: tuple[str, ...]) -> pa.Table:
    """Return uri, digest and perceptual hash of the rows of a file that have one of these uris or contents."""
    rows = parquet.with_columns(parquet.read_columns(path, _COLUMNS), _FACTS)
    return rows.filter(_matches(rows, uris, contents))


def _matches(rows: pa.Table, uris: tuple[str, ...], contents: tuple[str, ...]) -> pa.ChunkedArray:
    by_uri = pc.is_in(rows["uri"], pa.array(uris, pa.string()))
    return pc.or_(by_uri, pc.is_in(rows["content_sha256"], pa.array(contents, pa.string())))
