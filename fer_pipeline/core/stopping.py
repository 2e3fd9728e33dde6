"""What SIGTERM and SIGINT do to a command: it ends in order, and its exit code says which of them it was."""

import signal
from types import FrameType
from typing import NoReturn

_received: list[int] = []


def end_in_order() -> None:
    """Have SIGTERM and SIGINT raise KeyboardInterrupt, the one exception that Ray lets through; a second one ends at once.

    A signal that is ignored, as a shell has SIGINT for what runs in its background, stays so.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    _received.append(number)
    raise KeyboardInterrupt


def stopped_code() -> int:
    """Return the exit code of a command that was stopped: 143 after SIGTERM, 130 after SIGINT."""
    return 128 + next(iter(_received), signal.SIGINT)


def said_of(stopped: KeyboardInterrupt) -> str:
    """Return the last sentence of a command that was stopped."""
    return f"stopped, {str(stopped) or 'what is done is kept'}; run the same command to continue."
