"""When and with which camera a picture was taken, as its file says."""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

MOMENT = re.compile(r"(\d{4})[-:/](\d\d)[-:/](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,]\d*)?\s*(Z|[-+]\d\d:?\d\d)?\0*\s*")
"""A time as EXIF and containers of videos write it, with its offset from UTC or without."""
UNSET = ("1904-01-01T00:00:00", "1970-01-01T00:00:00")
"""The times of clocks that were never set."""
FIRST_YEAR = 1826
"""The year of the first photograph; an earlier one is no date."""
LONGEST_CAMERA = 80


@dataclass(frozen=True, slots=True)
class Capture:
    """When and with which camera a picture was taken; None is unknown."""

    taken_at: str | None = None
    """Local time in ISO 8601, to the second; its offset from UTC follows if the file says it, and is never assumed."""
    camera: str | None = None

    def after(self, time_ms: int) -> "Capture":
        """Return this capture `time_ms` later: that of a frame of a video."""
        try:
            moment = self.taken_at and datetime.fromisoformat(self.taken_at) + timedelta(milliseconds=time_ms)
        except OverflowError:
            moment = None
        return replace(self, taken_at=moment.isoformat(timespec="seconds") if moment else None)


UNKNOWN = Capture()


def local_time(text: object, offset: object = None) -> str | None:
    """Return a time as `Capture.taken_at` has it; None if `text` is none. `offset`: that from UTC, if `text` lacks it."""
    found = MOMENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        return None
    *date, own = found.groups()
    moment = "{}-{}-{}T{}:{}:{}".format(*date)
    stated = own or (offset.strip(" \0") if isinstance(offset, str) else "")
    try:
        year = datetime.fromisoformat(moment).year
        if moment in UNSET or year < FIRST_YEAR:
            return None
        return datetime.fromisoformat(moment + stated).isoformat() if _is_offset(stated) else moment
    except ValueError:
        return None


def _is_offset(text: str) -> bool:
    return re.fullmatch(r"Z|[-+](0\d|1[0-4]):?[0-5]\d", text) is not None


def camera_name(make: object, model: object) -> str | None:
    """Return maker and model as one name, such as `Canon EOS R6`; None if both are unknown."""
    maker, name = _cleaned(make), _cleaned(model)
    if maker and name.lower().startswith(maker.split()[0].lower()):
        maker = ""
    return f"{maker} {name}".strip() or None


def _cleaned(text: object) -> str:
    """Return a text of a file without what cannot be printed; empty for anything else."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text) if isinstance(text, str) else ""
    return " ".join(kept.split())[:LONGEST_CAMERA].strip()
