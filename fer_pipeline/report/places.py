"""Faces by folder and by date, as the paths of their files say."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FOLDERS, DATES = 40, 62
"""Shown at most: more folders are counted with those above them, more days by month, more months by year."""
DATE = (
    r"(?:^|[^0-9])(?P<year>(?:19|20)[0-9]{2})[-_/.]?(?P<month>0[1-9]|1[0-2])"
    r"(?:[-_/.]?(?P<day>0[1-9]|[12][0-9]|3[01]))?(?:[^0-9]|$)"
)
"""A date in a path: 2026/05/31, 2026-05-31, 20260531, 2026/05."""


@dataclass
class Count:
    """Faces of a place."""

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
        found = pc.extract_regex(pc.utf8_slice_codeunits(path, len(self.source)), DATE)
        parts = [pc.struct_field(found, part) for part in ("year", "month", "day")]
        for row in pc.value_counts(pc.binary_join_element_wise(*parts, "-").drop_null()).to_pylist():
            self.dates[row["values"].rstrip("-")] += row["counts"]

    def of(self, face: dict[str, Any]) -> str:
        """Return the folder or container of a face's file."""
        inside = face["member"] is not None or face["time_ms"] is not None
        return self.below(face["uri"] if inside else face["uri"].rpartition("/")[0])

    def below(self, path: str) -> str:
        """Return a path as it is named below the source: `.` where it is the source, or the folder of a source that is a file."""
        return path.removeprefix(self.source).strip("/") or "." if path.startswith(self.source) else "."

    def name(self, uri: str) -> str:
        """Return a file as it is named below the source, or by its own name where it is the source."""
        return PurePosixPath(uri).name if uri == self.source else self.below(uri)

    def by_folder(self) -> dict[str, Count]:
        """Return the counts of `FOLDERS` folders at most: of a level that is as deep as that allows, the largest first."""
        found = dict(self.folders)
        depth = max((len(PurePosixPath(name).parts) for name in found), default=0)
        while len(found) > FOLDERS and depth > 1:
            depth -= 1
            found = _merged(self.folders, depth)
        order = sorted(found, key=lambda name: (-found[name].faces, name))
        others = order[FOLDERS:]
        shown = {name: found[name] for name in order[:FOLDERS]}
        if others:
            rest = Count()
            for name in others:
                rest.add(found[name])
            shown[f"{len(others):,} others"] = rest
        return shown

    def by_date(self) -> dict[str, int]:
        """Return the counts by day, month or year, in order; none where there are not two."""
        found, digits = self.dates, 10
        while len(found) > DATES and digits > 4:
            digits -= 3
            shorter: Counter[str] = Counter()
            for date, count in self.dates.items():
                shorter[date[:digits]] += count
            found = shorter
        return dict(sorted(found.items())) if len(found) > 1 else {}


def _merged(folders: dict[str, Count], depth: int) -> dict[str, Count]:
    found: dict[str, Count] = defaultdict(Count)
    for name, count in folders.items():
        found["/".join(PurePosixPath(name).parts[:depth])].add(count)
    return dict(found)
