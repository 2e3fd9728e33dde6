"""The boundary around one record or one container: an error of an untrusted file fails that record and nothing else."""

import errno

from fer_pipeline.base import storage
from fer_pipeline.base.errors import ChangedError, OutageError, RecordError, UserError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
OUT_OF_MEMORY = ("insufficient memory", "can't allocate memory", "bad alloc", "bad_alloc", "malloc of size", "realloc of size")
"""Texts by which OpenCV, torch, ONNX Runtime and Arrow report it, in lower case."""


def as_file_error(url: str, error: Exception, status: str) -> RecordError:
    """Return an exception from reading a file as an error of its record, as `as_record_error` does.

    Raise OutageError if the store failed and a second request, which does not ask for the file, fails too.
    """
    if storage.says_store_failed(error) or storage.says_store_failed(error.__cause__):
        storage.require_store(url)
    return as_record_error(error, status)


def as_record_error(error: Exception, status: str) -> RecordError:
    """Return an exception from the work on one record or container as its RecordError: the exception's name and one line.

    The status is `too_large` if memory ran out. Raise `error` itself if the file is not the cause: a user error, a missing
    package, a store that is down, a full disk, too many open files.
    """
    if isinstance(error, RecordError):
        return error
    if storage.says_changed(error):
        return ChangedError()
    not_the_file = FULL_DISK | {errno.EMFILE, errno.ENFILE}
    if isinstance(error, UserError | ImportError | OutageError) or getattr(error, "errno", None) in not_the_file:
        raise error
    reason = storage.reason(error)[:300]
    if isinstance(error, MemoryError) or any(words in reason.lower() for words in OUT_OF_MEMORY):
        return RecordError("too_large", f"the record needs more memory than the limit: {reason}")
    return RecordError(status, reason)
