"""The dispatcher with an in-process double of Ray: how it handles each way in which a task can end."""

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, RuntimeEnvSetupError, WorkerCrashedError

from fer_pipeline.archive.record import Record, split_into_shards
from fer_pipeline.base.errors import ClusterError, UserError
from fer_pipeline.base.identity import Identity
from fer_pipeline.base.processor import has_native_bf16
from fer_pipeline.engine.tasks import Ended
from fer_pipeline.jobs.label.chunk import Chunk, Committed, Probed, Step
from fer_pipeline.jobs.label.dispatch import Dispatcher
from fer_pipeline.jobs.label.worker import slow_machine
from fer_pipeline.labelling.labeller import LabelSettings
from fer_pipeline.labelling.manifest import write_manifest
from fer_pipeline.labelling.run import RunFolder, RunRecord

RECORDS = 2
"""Records in a shard."""
Outcome = Callable[[Chunk], "BaseException | None"]


class InProcess:
    """A cluster with a number of cores. Its tasks end at once, as `outcome` says; successful ones are committed."""

    def __init__(self, folder: RunFolder, cores: int, outcome: Outcome = lambda chunk: None) -> None:
        self.folder, self.size, self.outcome = folder, cores, outcome
        self.started: list[Chunk] = []
        self.queue: list[Ended[Chunk]] = []
        self.wanted: list[int] = []
        self.steps: Counter[Step] = Counter()

    def start(self, chunk: Chunk) -> None:
        self.steps[chunk.step] += 1
        error = self.outcome(chunk)
        if error is None and chunk.step in (Step.LABEL, Step.SINGLY):
            for shard in chunk.shards:
                self.commit(shard)
        poison = {chunk.manifests[0]["record_id"][0].as_py(): ("crashed", "dies")}
        self.queue.append(Ended(chunk, Probed(poison) if chunk.step is Step.PROBE else Committed(), error))

    def commit(self, shard: int) -> None:
        path = Path(self.folder.images_path(shard))
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def ended(self, timeout_s: float) -> list[Ended[Chunk]]:
        found, self.queue = self.queue, []
        return found

    def cores(self, wanted: int, gpus: float) -> int:
        self.wanted.append(wanted)
        return self.size


def run_of(tmp_path: Path, shards: int) -> tuple[RunFolder, RunRecord]:
    """Return a run that has only its manifest."""
    folder, nobody = RunFolder(str(tmp_path / "run")), Identity(name="x", digest="0")
    record = RunRecord(run_id="r", created_at="2026-01-01", source="", settings={}, model=nobody, detector=nobody, shards=shards)
    listing = (Record(f"{number}.jpg") for number in range(RECORDS * shards))
    write_manifest(folder.manifest_prefix("r"), split_into_shards(listing, RECORDS, 10**9))
    return folder, record


def dispatched(
    tmp_path: Path, shards: int, outcome: Outcome = lambda chunk: None, cores: int = 4, **options: Any
) -> tuple[int, InProcess, RunFolder]:
    folder, record = run_of(tmp_path, shards)
    tasks = InProcess(folder, cores, outcome)
    advanced: list[int] = []
    dispatcher = Dispatcher(folder, record, tasks, **options)  # type: ignore[arg-type]
    labelled = dispatcher.label(range(shards), advanced.append)
    assert sum(advanced) == RECORDS * shards
    return labelled, tasks, folder


def test_every_shard_is_labelled_once_and_the_whole_demand_is_asked_for(tmp_path: Path) -> None:
    labelled, tasks, folder = dispatched(tmp_path, 600)
    assert labelled == 1200 and folder.committed() == set(range(600))
    assert set(tasks.steps) == {Step.LABEL} and tasks.wanted[0] == 600


def failing(times: int, make: Callable[[], BaseException]) -> Outcome:
    """Return an outcome with which the first tasks fail."""
    left = iter(range(times))
    return lambda chunk: make() if next(left, None) is not None else None


@pytest.mark.parametrize(
    "make",
    [
        lambda: NodeDiedError("preempted"),
        lambda: RuntimeEnvSetupError("no network"),
        lambda: OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_befalls_a_machine_is_not_counted_against_records(make: Callable[[], BaseException], tmp_path: Path) -> None:
    labelled, tasks, folder = dispatched(tmp_path, 40, failing(60, make))
    assert labelled == 80 and folder.committed() == set(range(40))
    assert set(tasks.steps) == {Step.LABEL}  # nothing was probed: no record can be marked as crashed


def test_a_cluster_that_only_loses_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="run the same command again"):
        dispatched(tmp_path, 40, lambda chunk: NodeDiedError("preempted"))


@pytest.mark.parametrize("make", [lambda: OutOfMemoryError("low on memory"), WorkerCrashedError])
def test_a_cluster_on_which_every_task_dies_is_not_tried_for_ever(make: Callable[[], BaseException], tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="run the same command again"):
        dispatched(tmp_path, 40, lambda chunk: make())


def test_a_workers_error_is_raised_as_it_was(tmp_path: Path) -> None:
    def outcome(chunk: Chunk) -> BaseException:
        error: BaseException = RayTaskError("label", "Traceback: a remote one", UserError("Mend this.")).as_instanceof_cause()
        return error

    with pytest.raises(UserError) as raised:
        dispatched(tmp_path, 4, outcome)
    assert type(raised.value) is UserError and str(raised.value) == "Mend this."


def test_an_error_of_neither_machine_nor_data_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        dispatched(tmp_path, 40, lambda chunk: ZeroDivisionError())


def test_a_shard_that_kills_alone_is_probed_and_labelled_without_its_culprit(tmp_path: Path) -> None:
    def outcome(chunk: Chunk) -> BaseException | None:
        return WorkerCrashedError() if 7 in chunk.shards and chunk.step is Step.LABEL and not chunk.poison else None

    labelled, tasks, folder = dispatched(tmp_path, 40, outcome)
    assert labelled == 80 and folder.committed() == set(range(40)) and tasks.steps[Step.PROBE] == 1


def test_a_shard_whose_records_kill_only_together_is_labelled_one_by_one(tmp_path: Path) -> None:
    def outcome(chunk: Chunk) -> BaseException | None:
        return WorkerCrashedError() if 7 in chunk.shards and chunk.step is Step.LABEL else None

    labelled, tasks, folder = dispatched(tmp_path, 40, outcome)
    assert labelled == 80 and folder.committed() == set(range(40)) and tasks.steps[Step.SINGLY] == 1


def test_memory_kills_are_the_neighbours_until_a_shard_was_alone_on_its_machine(tmp_path: Path) -> None:
    alone: list[bool] = []

    def outcome(chunk: Chunk) -> BaseException | None:
        if chunk.shards != [7] or chunk.step is Step.PROBE:
            return OutOfMemoryError("low on memory") if 7 in chunk.shards and len(chunk.shards) > 1 else None
        alone.append(chunk.whole_node)
        return OutOfMemoryError("low on memory") if len(alone) <= 2 else None

    labelled, tasks, _ = dispatched(tmp_path, 40, outcome)
    assert labelled == 80 and alone == [False, True, True] and not tasks.steps[Step.PROBE]


def test_rows_that_are_tried_again_stay_until_the_new_ones_are_there(tmp_path: Path) -> None:
    folder, _ = run_of(tmp_path, 40)
    there: list[bool] = []

    def outcome(chunk: Chunk) -> BaseException | None:
        if 7 in chunk.shards:
            there.append(Path(folder.images_path(7)).exists())
            return NodeDiedError("preempted") if len(there) < 3 else None
        return None

    Path(folder.images_path(7)).parent.mkdir()
    Path(folder.images_path(7)).touch()
    labelled, _, _ = dispatched(tmp_path, 40, outcome, redo=frozenset({7}))
    assert labelled == 80 and there == [True, True, True]


def test_two_drivers_of_a_run_share_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_pipeline.jobs.label import dispatch

    monkeypatch.setattr(dispatch, "LOOK_S", -1.0)
    monkeypatch.setattr(dispatch, "OTHERS_S", -1.0)
    shards = 256 * 8
    folder, record = run_of(tmp_path, shards)
    labels: Counter[int] = Counter()

    def steps(resumed: bool) -> Iterator[None]:
        tasks = InProcess(folder, 4)
        dispatcher = Dispatcher(folder, record, tasks, resumed=resumed)  # type: ignore[arg-type]
        dispatcher.left = shards
        fresh = dispatcher._fresh(range(shards), lambda count: None)
        while True:
            dispatcher._look()
            dispatcher._fill(fresh)
            ended = tasks.ended(0)
            if not ended:
                return
            dispatcher.running -= len(ended)
            labels.update(shard for one in ended for shard in one.item.shards)
            yield

    drivers = [steps(False), steps(True)]
    while drivers:
        drivers = [driver for driver in drivers if next(driver, "ended") != "ended"]
    assert set(labels) == set(range(shards))
    assert sum(labels.values()) < 1.5 * shards


def test_a_machine_that_emulates_the_runs_arithmetic_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class OldMachines(InProcess):
        def ended(self, timeout_s: float) -> list[Ended[Chunk]]:
            return [Ended(one.item, Committed("node-7"), one.error) for one in super().ended(timeout_s)]

    folder, record = run_of(tmp_path, 40)
    dispatcher = Dispatcher(folder, record, OldMachines(folder, 2))  # type: ignore[arg-type]
    assert dispatcher.label(range(40), lambda count: None) == 80
    assert [entry.message for entry in caplog.records if "node-7" in entry.message] == [
        "node-7 emulates bf16, the arithmetic of this run: its labels are the same, but slower"
    ]


def test_bf16_is_emulated_by_a_processor_that_does_not_say_otherwise(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx2 avx512f\n")
    assert not has_native_bf16(cpuinfo) and not has_native_bf16(tmp_path / "none")
    cpuinfo.write_text("flags : fpu avx512_bf16\n")
    assert has_native_bf16(cpuinfo)
    settings = LabelSettings(640, 0.5, 10**8, 10**9, "bf16", 0.5)
    assert slow_machine(settings, False) and slow_machine(settings, True) is None
    assert slow_machine(replace(settings, precision="fp32"), False) is None
