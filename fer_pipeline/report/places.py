"""Count faces by folder and by date, according to the paths of their files."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_FOLDERS = 40
"""If there are more, folders are counted with the folder above them."""
MAX_DATES = 62
"""If there are more, days are counted by month, and months by year."""
DATE_PATTERN = (
    r"(?:^|[^0-9])(?P<year>(?:19|20)[0-9]{2})[-_/.]?(?P<month>0[1-9]|1[0-2])"
    r"(?:[-_/.]?(?P<day>0[1-9]|[12][0-9]|3[01]))?(?:[^0-9]|$)"
)
"""A date in a path: 2026/05/31, 2026-05-31, 20260531, 2026/05."""


@dataclass
class Count:
    """Number of faces in a folder."""

    faces: int = 0
    uncertain: int = 0

    def add(self, other: "Count") -> None:
        self.faces += other.faces
        self.uncertain += other.uncertain


@dataclass
class Places:
    """Counts faces by the folder or container of their file, and by the date in its path."""

    source: str
    folders: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    dates: Counter[str] = field(default_factory=Counter)

    def add(self, faces: pa.Table) -> None:
        """Count the rows of one file of `faces/`."""
        loose = pc.and_(pc.is_null(faces["member"]), pc.is_null(faces["time_ms"]))
        folder = pc.if_else(loose, pc.replace_substring_regex(faces["uri"], "/[^/]*$", ""), faces["uri"])
        sums = pa.table({"folder": folder, "uncertain": faces["uncertain"].cast(pa.int64())}).group_by("folder")
        for row in sums.aggregate([("uncertain", "sum"), ("uncertain", "count")]).to_pylist():
            self.folders[self.below(row["folder"])].add(Count(row["uncertain_count"], row["uncertain_sum"]))
        path = pc.binary_join_element_wise(faces["uri"], faces["member"], "/", null_handling="skip")
        dates = pc.extract_regex(pc.utf8_slice_codeunits(path, len(self.source)), DATE_PATTERN)
        parts = [pc.struct_field(dates, part) for part in ("year", "month", "day")]
        for row in pc.value_counts(pc.binary_join_element_wise(*parts, "-").drop_null()).to_pylist():
            self.dates[row["values"].rstrip("-")] += row["counts"]

    def of(self, face: dict[str, Any]) -> str:
        """Return the folder or container of a face's file."""
        inside = face["member"] is not None or face["time_ms"] is not None
        return self.below(face["uri"] if inside else face["uri"].rpartition("/")[0])

    def below(self, path: str) -> str:
        """Return a path relative to the source: `.` for the source itself, or for the folder of a source that is a file."""
        return path.removeprefix(self.source).strip("/") or "." if path.startswith(self.source) else "."

    def name(self, uri: str) -> str:
        """Return a file's path relative to the source, or its name if it is the source."""
        return PurePosixPath(uri).name if uri == self.source else self.below(uri)

    def by_folder(self) -> dict[str, Count]:
        """Return the counts of at most `MAX_FOLDERS` folders, at the deepest possible level, the largest first."""
        counts = dict(self.folders)
        depth = max((len(PurePosixPath(name).parts) for name in counts), default=0)
        while len(counts) > MAX_FOLDERS and depth > 1:
            depth -= 1
            counts = _merged(self.folders, depth)
        order = sorted(counts, key=lambda name: (-counts[name].faces, name))
        others = order[MAX_FOLDERS:]
        shown = {name: counts[name] for name in order[:MAX_FOLDERS]}
        if others:
            rest = Count()
            for name in others:
                rest.add(counts[name])
            shown[f"{len(others):,} others"] = rest
        return shown

    def by_date(self) -> dict[str, int]:
        """Return the counts by day, month or year, in order; an empty dict for fewer than two dates."""
        counts, characters = self.dates, 10
        while len(counts) > MAX_DATES and characters > 4:
            characters -= 3
            shorter: Counter[str] = Counter()
            for date, count in self.dates.items():
                shorter[date[:characters]] += count
            counts = shorter
        return dict(sorted(counts.items())) if len(counts) > 1 else {}


def _merged(folders: dict[str, Count], depth: int) -> dict[str, Count]:
    """Return the counts of folders with their paths cut to `depth` parts."""
    merged: dict[str, Count] = defaultdict(Count)
    for name, count in folders.items():
        merged["/".join(PurePosixPath(name).parts[:depth])].add(count)
    return dict(merged)
