"""What does a person at the terminal see? Lines, one after the other; with `log.live` on a terminal, one view redrawn in place:

    tiny  step 57/120  tokens 116,736  left 0:00:31
    loss 5.8127  ▇█▆▆▅▄▄▃▃▂▂▁▁  grad norm 1.204  lr 3.00e-03  4,214 tokens/s
    alarm: none

Whatever else is said (a validation, an alarm) is printed above the view and stays.
"""

from collections import deque
from typing import Any, TextIO

from megatron_jmed.config import RunConfig

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


class Screen:
    """The terminal of rank 0."""

    def __init__(self, config: RunConfig, out: TextIO):
        self._config, self._out = config, out
        self.is_live = config.log.live and out.isatty()
        self._losses: deque[float] = deque(maxlen=_WIDTH)
        self._alarm = "none"
        self._view: list[str] = []

    def show(self, record: dict[str, Any], left: str) -> None:
        """Redraw the view with the numbers of a step."""
        self._losses.append(record["loss"])
        self._draw([
            f"{self._config.name}  step {record['step']}/{self._config.num_steps}  tokens {record['tokens']:,}  left {left}",
            f"loss {record['loss']:.4f}  {sparkline(self._losses)}  grad norm {record['grad_norm']:.3f}  lr {record['lr']:.2e}  "
            f"{record['tokens_per_second']:,.0f} tokens/s",
            f"alarm: {self._alarm}",
        ])

    def say(self, line: str, alarm: str = "") -> None:
        """Print a line that stays; `alarm` is remembered in the view."""
        self._alarm = (alarm and line.removeprefix("ALARM ")) or self._alarm
        view = self._view
        self._erase()
        print(line, file=self._out, flush=True)
        if view:
            self._draw(view)

    def _draw(self, lines: list[str]) -> None:
        self._erase()
        # a terminal must not wrap a line of the view, or the next redraw would begin too low
        print("\x1b[?7l" + "\n".join(lines) + "\x1b[?7h", file=self._out, flush=True)
        self._view = lines

    def _erase(self) -> None:
        if self._view:
            print(f"\x1b[{len(self._view)}A\x1b[J", end="", file=self._out)
            self._view = []


def sparkline(numbers) -> str:
    """One bar for each finite number, from the least to the greatest; ! for one that is not finite."""
    finite = [number for number in numbers if abs(number) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((number - low) * scale)] if abs(number) < float("inf") else "!" for number in numbers)
