"""On a terminal one view is redrawn and what was said stays above it; elsewhere there are lines only."""

import io
import math
import re

import pytest

from megatron_jmed.train.screen import Screen, sparkline


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a person sees: the escape sequences carried out."""
        seen = [""]
        for part in re.split(r"(\x1b\[\?7[lh]|\x1b\[\d*[AJ]|\n)", self.getvalue()):
            if part == "\n":
                seen.append("")
            elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
                seen = [*seen[:len(seen) - 1 - int(up[1])], ""]  # what follows is erased, too
            elif not part.startswith("\x1b"):
                seen[-1] += part
        return [line for line in seen if line]


def record(step: int, loss: float) -> dict:
    return {"step": step, "tokens": step * 2048, "loss": loss, "grad_norm": 0.5, "lr": 3e-4, "tokens_per_second": 1234.0}


def test_the_view_is_redrawn_in_place_and_alarms_stay_above_it(small_config):
    terminal = Terminal()
    screen = Screen(small_config("log.live=true"), terminal)
    assert screen.is_live
    for step in (1, 2, 3):
        screen.show(record(step, 4.0 - step), "0:01:00")
    screen.say("ALARM slow (warn) at step 3: half as fast", alarm="slow")
    screen.show(record(4, 0.0), "0:00:50")
    assert terminal.lines() == [
        "ALARM slow (warn) at step 3: half as fast",
        "tiny  step 4/120  tokens 8,192  left 0:00:50",
        "loss 0.0000  █▆▃▁  grad norm 0.500  lr 3.00e-04  1,234 tokens/s",
        "alarm: slow (warn) at step 3: half as fast",
    ]


@pytest.mark.parametrize(("out", "live"), [(io.StringIO(), "true"), (Terminal(), "false")])
def test_without_a_terminal_or_a_wish_there_are_only_lines(out, live, small_config):
    screen = Screen(small_config(f"log.live={live}"), out)
    screen.say("step 1/120  validation loss 2.0")
    assert not screen.is_live and out.getvalue() == "step 1/120  validation loss 2.0\n"


def test_sparkline_goes_from_the_least_to_the_greatest():
    assert sparkline([0, 7, 3.5, math.nan, math.inf]) == "▁█▅!!"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([]) == "" and sparkline([math.nan]) == "!"
