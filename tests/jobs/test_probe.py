"""What the probe makes of each death of a record's process; real deaths are in tests/faults/test_poison.py."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from fer_pipeline.jobs.label import probe as module

LIMIT_S = 60.0
Answer = Callable[[int, int], "BaseException | None"]
"""What ends the attempt at a record, given its id and the attempt; None: it is labelled."""


class Process:
    """An actor in which records end as a test says; it dies of them."""

    def __init__(self, answer: Answer, attempts: dict[int, int]) -> None:
        self.answer, self.attempts = answer, attempts
        self.label = self

    def remote(self, manifest: pa.Table, poison: Any) -> Any:
        record = manifest["record_id"][0].as_py()
        if record in poison:
            return lambda: manifest
        self.attempts[record] = self.attempts.get(record, 0) + 1
        error = self.answer(record, self.attempts[record])

        def result() -> pa.Table:
            if error:
                raise error
            return manifest

        return result


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, tuple[str, str]]]:
    """Probes four records, each of which ends as the given function says, on a node that lives or does not."""

    def run(answer: Answer, node_lives: bool = True, took_s: float = 0.0) -> dict[int, tuple[str, str]]:
        attempts: dict[int, int] = {}
        clock = iter(range(10**6))
        monkeypatch.setattr(module, "_new_actor", lambda *_: (Process(answer, attempts), LIMIT_S, "node"))
        monkeypatch.setattr(module, "_is_alive", lambda node: node_lives)
        monkeypatch.setattr(module.time, "monotonic", lambda: took_s * next(clock))  # type: ignore[attr-defined]
        monkeypatch.setattr(ray, "get", lambda result: result())
        monkeypatch.setattr(ray, "kill", lambda actor: None)
        poison: dict[int, tuple[str, str]] = {}
        manifest = pa.table({"record_id": [0, 1, 2, 3]})
        assert sum(len(table) for table in module._labelled_alone(None, manifest, poison, 1)) == 4  # type: ignore[arg-type, misc]
        return poison

    return run


def test_a_record_that_kills_each_time_is_marked_and_its_neighbours_are_not(probed: Any) -> None:
    assert {
        record: status for record, (status, _) in probed(lambda record, _: ActorDiedError() if record == 2 else None).items()
    } == {2: "crashed"}


def test_a_record_that_kills_once_is_tried_again(probed: Any) -> None:
    assert probed(lambda record, attempt: ActorDiedError() if attempt == 1 else None) == {}


def test_a_record_that_outlasts_its_time_is_timed_out_at_once(probed: Any) -> None:
    found = probed(lambda record, attempt: ActorDiedError() if record == 1 else None, took_s=LIMIT_S)
    assert {record: status for record, (status, _) in found.items()} == {1: "timed_out"}


@pytest.mark.parametrize("lives", [True, False])
def test_no_record_is_blamed_for_its_machine(lives: bool, probed: Any) -> None:
    error: BaseException = ActorUnavailableError("unreachable", None) if lives else ActorDiedError()
    assert probed(lambda record, attempt: error if attempt < 4 else None, node_lives=lives) == {}
