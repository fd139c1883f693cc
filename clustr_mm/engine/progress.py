"""How far a tool has come, and how long it will still take."""

import sys
import time
from collections.abc import Callable


def progress_line() -> Callable[[str, int, int], None]:
    """Makes a function that says how much is done, and the time left, on standard error.

    Returns:
        Callable[[str, int, int], None]: To be called with (what, done, in all) as often as one
            likes, at first with nothing done. In a terminal one line moves; elsewhere there is one
            every 10 s, and the last.
    """
    begun: dict[str, float] = {}
    last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start = begun.setdefault(what, last if done else now)
        moves = sys.stderr.isatty()
        if not done or (done < total and now - last < (0.2 if moves else 10)):
            return
        last = now
        rate = done / max(now - start, 1e-9)
        line = f'{what}: {done:,}/{total:,}, {rate:,.0f}/s, ETA {(total - done) / rate:.0f} s'
        # What is printed next begins where the moving line does.
        ends = (f'\r{line} ', '\n' if done == total else '\r') if moves else (line, '\n')
        print(ends[0], end=ends[1], file=sys.stderr, flush=True)

    return show
