"""What a table holds after each night, by the rules of docs/nightly.md alone: nothing of the table's own code is asked.

A row is what a night says of one record: its version (size and etag), what was found in its bytes and by which model.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

Key = tuple[str, str | None]
"""Path and member; the member is None for a plain file, and for a container that cannot be read."""


@dataclass(frozen=True)
class Listed:
    """A record of a listing."""

    key: Key
    etag: str
    content: str
    """What its bytes are; empty where the listing already knows that they cannot be read."""
    fails: str | None = None
    """The status that labelling it would end with tonight."""

    @property
    def hides(self) -> bool:
        """Whether it is a container whose members cannot be listed tonight."""
        return not self.content


@dataclass(frozen=True)
class Row:
    """What the table says of a record."""

    etag: str
    status: str
    label: str | None
    model: str
    """Which labelled it, or failed to."""
    attempt: int
    ages: frozenset[int]
    """When it may have been labelled: a row that is carried over keeps its time, and several may have the same bytes."""
    content: str
    kept: bool = False
    """Its label is an earlier night's: one that was to make it anew failed, `attempt` times."""


def label_of(content: str, model: str) -> str:
    """Return what a model says of some bytes."""
    return f"{model} says {content}"


@dataclass
class Night:
    """What a night found, before it is published."""

    put: dict[Key, Row]
    gone: set[Key]
    looked: int
    """How many looks at the source, published or without a change, there were before it."""

    @property
    def changes_nothing(self) -> bool:
        return not self.put and not self.gone


@dataclass
class Oracle:
    """The table, by the rules."""

    max_attempts: int
    rows: dict[Key, Row] = field(default_factory=dict)
    looks: int = 0
    """Nights that were published or found nothing changed."""

    def night(self, listed: Iterable[Listed], model: str, now: int, budget: int | None) -> Night:
        """Return what a night labels, and what leaves the table."""
        by_key = {one.key: one for one in listed}
        hidden = {(one.key[0], one.etag) for one in by_key.values() if one.hides}
        outdated = [one for one in by_key.values() if self._is_outdated(one, model)]
        outdated.sort(key=lambda one: min(self.rows[one.key].ages))
        left_for_later = {one.key for one in outdated[len(outdated) if budget is None else budget :]}
        gone = {key for key, row in self.rows.items() if key not in by_key and (key[0], row.etag) not in hidden}
        changed = {one.key for one in by_key.values() if one.key in self.rows and self.rows[one.key].etag != one.etag}
        known: dict[str, frozenset[int]] = {}
        for row in (self.rows[key] for key in gone | changed):
            if row.status == "ok" and row.model == model:
                known[row.content] = known.get(row.content, frozenset()) | row.ages
        put = {}
        for key, one in by_key.items():
            attempt = self._attempt(one, model)
            if attempt is not None and key not in left_for_later:
                put[key] = self._labelled(one, model, known.get(one.content, frozenset((now,))), attempt)
        return Night(put, gone, self.looks)

    def _is_outdated(self, one: Listed, model: str) -> bool:
        row = self.rows.get(one.key)
        return row is not None and row.etag == one.etag and self._attempt(one, model) is not None and not self._is_retry(row)

    def _is_retry(self, row: Row) -> bool:
        return row.status != "ok" and row.attempt < self.max_attempts

    def _attempt(self, one: Listed, model: str) -> int | None:
        """Return which attempt labelling a record tonight is; None where its row stays."""
        row = self.rows.get(one.key)
        if row is None or row.etag != one.etag:
            return 1
        if self._is_retry(row):
            return row.attempt + 1
        if row.model == model:
            return None
        if row.kept:
            return row.attempt + 1 if row.attempt < self.max_attempts else None
        return 1

    def _labelled(self, one: Listed, model: str, ages: frozenset[int], attempt: int) -> Row:
        before = self.rows.get(one.key)
        if one.fails is None:
            return Row(one.etag, "ok", label_of(one.content, model), model, attempt, ages, one.content)
        if before and before.status == "ok" and before.etag == one.etag:
            return replace(before, attempt=attempt, kept=True)
        return Row(one.etag, one.fails, None, model, attempt, ages, one.content)

    def may_publish(self, night: Night) -> bool:
        """Tell whether a night is published when that is asked for: not after another look at the source."""
        return night.looked == self.looks

    def publish(self, night: Night) -> None:
        """Let the table be as the night found it."""
        self.rows = {key: row for key, row in self.rows.items() if key not in night.gone} | night.put
        self.looks += 1

    def settle(self, key: Key, labelled_at: int) -> None:
        """Take over which of the times a row has that it may have."""
        self.rows[key] = replace(self.rows[key], ages=frozenset((labelled_at,)))
