"""Running a program in the user's stead: their terminal, their signals, its exit status.

On the path of every build: imports are counted here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence

# Python ignores these from its start, and a child would inherit that.
_PYTHONS_OWN = (signal.SIGPIPE, signal.SIGXFSZ)

FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
HANDED_ON = (signal.SIGTERM, signal.SIGHUP)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    watched: Callable[[], int] | None = None,
    first: Callable[[], None] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> int:
    """Run ``command`` with our stdio and return its exit status, 128 + N if signal N killed it.

    SIGINT and SIGQUIT are ignored meanwhile: the terminal sends them to the whole group, and the
    child decides what they mean.  SIGTERM and SIGHUP are handed on, unless they were ignored.

    ``watched``: the program only watches over another process, which outlives no signal that it
    is not meant to.  It begins with all four ignored, and ``watched()`` gives the number of the
    process that gets them (0: not known).  ``first()`` is called once the command runs, for work
    that it waits for: the terminal's signals end that, too.  ``meanwhile()`` is called after it.
    Whatever they raise, the command's end is waited for.  Raises OSError where nothing can be
    started.
    """
    before = {number: signal.getsignal(number) for number in (*FROM_TERMINAL, *HANDED_ON)}
    ours = {number for number, handler in before.items() if handler is not signal.SIG_IGN}
    receiver = 0
    early = 0

    def hand_on(number: int, _frame: object) -> None:
        nonlocal early
        if receiver:
            os.kill(receiver, number)
        else:
            early = number

    def catch() -> None:
        for number in HANDED_ON:
            if number in ours:
                signal.signal(number, hand_on)

    for number in FROM_TERMINAL if watched is None else before:
        signal.signal(number, signal.SIG_IGN)
    try:
        if watched is None:
            catch()
        default = [*_PYTHONS_OWN, *(ours.intersection(FROM_TERMINAL) if watched is None else ())]
        child = os.posix_spawnp(command[0], list(command), environment, setsigdef=default)
        if watched is not None:
            catch()
        receiver = child if watched is None else watched()
        if early:
            hand_on(early, None)
        try:
            if first is not None:
                for number in FROM_TERMINAL:
                    signal.signal(number, before[number])
                try:
                    first()
                finally:
                    for number in FROM_TERMINAL:
                        signal.signal(number, signal.SIG_IGN)
            if meanwhile is not None:
                meanwhile()
        finally:
            _, status = os.waitpid(child, 0)
        receiver = 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
