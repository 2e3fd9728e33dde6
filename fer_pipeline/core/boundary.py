"""The boundary around one record or one container: what a stranger's file raises there becomes its row, and no more."""

import errno

from fer_pipeline.core import storage
from fer_pipeline.core.errors import ChangedError, OutageError, RecordError, UserError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
NOT_THE_FILES = FULL_DISK | {errno.EMFILE, errno.ENFILE}
"""A full disk and too many open files are not the file's fault."""
OUT_OF_MEMORY = ("insufficient memory", "can't allocate memory", "bad alloc", "bad_alloc", "malloc of size", "realloc of size")
"""How OpenCV, torch, ONNX Runtime and Arrow say it, in lower case."""


def as_file_error(url: str, error: Exception, status: str) -> RecordError:
    """Return what reading a file raised as an error of its record, as `as_record_error` does.

    Raise OutageError where its store failed and a second look at the store, not at the file, finds it down: that is nobody's row.
    """
    if storage.says_store_failed(error) or storage.says_store_failed(error.__cause__):
        storage.require_store(url)
    return as_record_error(error, status)


def as_record_error(error: Exception, status: str) -> RecordError:
    """Return what the work on one record or container raised as an error of it, with the exception's name and one line.

    Memory that ran out is `too_large`. Raise `error` itself where it is not the file's: what the user must mend, what is not
    installed, a store that is down, a full disk, too many open files.
    """
    if isinstance(error, RecordError):
        return error
    if storage.says_changed(error):
        return ChangedError()
    if isinstance(error, UserError | ImportError | OutageError) or getattr(error, "errno", None) in NOT_THE_FILES:
        raise error
    reason = storage.reason(error)[:300]
    if isinstance(error, MemoryError) or any(words in reason.lower() for words in OUT_OF_MEMORY):
        return RecordError("too_large", f"the memory that a record may take does not suffice: {reason}")
    return RecordError(status, reason)
