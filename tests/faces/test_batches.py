from collections.abc import Sequence

import pytest
import torch

from fer_pipeline.faces.batches import Batches


def device_for(most: int, calls: list[int]) -> object:
    """Return a function that sums numbers, on a device with memory for `most` of them."""

    def summed(numbers: Sequence[int]) -> int:
        calls.append(len(numbers))
        if len(numbers) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(numbers)

    return summed


def test_a_batch_that_the_device_cannot_hold_is_halved_for_good(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    batches = Batches(8)
    assert list(batches(device_for(3, calls), range(10))) == [1, 5, 9, 13, 17]  # type: ignore[arg-type]
    assert calls == [8, 4, 2, 2, 2, 2, 2] and batches.size == 2
    assert "cannot hold a batch of 4" in caplog.text


def test_what_a_device_cannot_hold_alone_and_any_other_error_is_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(Batches(8)(device_for(0, []), range(3)))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes"):
        list(Batches(8)(lambda numbers: (_ for _ in ()).throw(RuntimeError("shapes")), [1, 2]))
