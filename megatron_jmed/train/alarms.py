"""Do the numbers of this run look sick? Pure functions of its history: no state, no clock, no torch.

In: the records of metrics.jsonl in their order, the newest step last (alarm records among them are how an alarm knows that it
has been raised). Out: alarms. A resumed run reads its history from the file and raises the same alarms as one that never
stopped; only `slow` depends on the machine.

With med = median, and sigma(x) = 1.4826 med |x - med(x)| (the standard deviation, if x is normal; a few outliers do not move
it), N = window_steps, and the newest step t:

  non_finite        loss or gradient norm is NaN or Inf
  loss_spike        each of the last m = loss_spike_steps losses lies above  med(r) + max(k sigma(r), 0.02 med(r)), where
                    r_i = loss_i + b (N - i), i = 1..N, are the N losses before those m, with their fall b a step taken out (else a
                    falling loss would hide a spike);  b = min(0, med of their later half - med of their earlier half) / (N / 2);
                    k = loss_spike_sigmas
  grad_norm_spike   log g_t > med + max(k sigma, log 2)  of the logarithms of the N norms before (norms are skewed: their
                    logarithm is nearly normal, and k sigma means the same up and down);  k = grad_norm_spike_sigmas
  dead_expert       in some layer, an expert's mean share of the last n = min_steps steps is below dead_expert_ratio / E
  overloaded_expert the same mean is above overloaded_expert_ratio / E
  slow              the median speed (TFLOP/s a GPU, so that a resume on more GPUs is no change) of the last
                    s = slow_steps steps is below slow_ratio of the median of the N before those s

Only finite numbers count, and no rule but the first speaks before it has `min_steps` of them to compare with. An alarm is not
raised again within `quiet_steps`. The numbers 6 sigma and 128 steps are those of OLMo-core's SkipStepOptimizer, which takes
mean and standard deviation instead.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from megatron_jmed.config import WatchConfig

Record = dict[str, Any]

_LEAST_LOSS_RISE = 0.02   # of the median: smaller rises are no spike, however quiet the run is
_LEAST_NORM_FACTOR = 2.0


# Alarms that may come from what the step has read.
BATCH_ALARMS = ("non_finite", "loss_spike", "grad_norm_spike")


class Alarm(NamedTuple):
    """Something that a person would want to know; `action` is what the config says to do about it."""

    name: str
    step: int
    action: str
    sentence: str


def check(history: Sequence[Record], watch: WatchConfig) -> list[Alarm]:
    """The alarms that the newest step raises; [] if the last record is not that of a step."""
    steps = [record for record in history if "loss" in record]
    if not steps or history[-1] is not steps[-1]:
        return []
    step = steps[-1]["step"]
    heard = {record["alarm"]["name"]: record["step"] for record in history if "alarm" in record}
    sentences = {
        "non_finite": _non_finite(steps),
        "loss_spike": watch.loss_spike != "off" and _loss_spike(steps, watch),
        "grad_norm_spike": watch.grad_norm_spike != "off" and _grad_norm_spike(steps, watch),
        "dead_expert": watch.dead_expert != "off" and _dead_expert(steps, watch),
        "overloaded_expert": watch.overloaded_expert != "off" and _overloaded_expert(steps, watch),
        "slow": watch.slow != "off" and _slow(steps, watch),
    }
    return [Alarm(name, step, getattr(watch, name), sentence) for name, sentence in sentences.items()
            if sentence and (name not in heard or step - heard[name] >= watch.quiet_steps)]


def recent(records: Iterable[Record], watch: WatchConfig) -> deque[Record]:
    """The steps and alarms at the end of a history; as it grows it forgets what `check` no longer needs."""
    num_steps = watch.window_steps + watch.quiet_steps + watch.slow_steps + watch.loss_spike_steps
    return deque((record for record in records if "loss" in record or "alarm" in record), maxlen=2 * num_steps)


def _non_finite(steps: Sequence[Record]) -> str:
    last = steps[-1]
    if all(map(math.isfinite, (_number(last, "loss"), _number(last, "grad_norm")))):
        return ""
    return f"loss {last['loss']}, gradient norm {last['grad_norm']}"


def _loss_spike(steps: Sequence[Record], watch: WatchConfig) -> str:
    before, last = _window(steps, "loss", watch, watch.loss_spike_steps)
    if len(before) < watch.min_steps or len(last) < watch.loss_spike_steps:
        return ""
    half = len(before) // 2
    fall = min(0.0, median(before[half:]) - median(before[:half])) / half
    usual, sigma = _median_and_sigma([loss + fall * (len(before) - number) for number, loss in enumerate(before, start=1)])
    limit = usual + max(watch.loss_spike_sigmas * sigma, _LEAST_LOSS_RISE * abs(usual))
    if min(last) <= limit:
        return ""
    return (f"loss {last[-1]:.4f} where {usual:.4f} is usual (by {len(before)} steps before); above {limit:.4f} for "
            f"{len(last)} steps")


def _grad_norm_spike(steps: Sequence[Record], watch: WatchConfig) -> str:
    norms = [_number(record, "grad_norm") for record in steps[-watch.window_steps - 1:]]
    limit = grad_norm_limit(norms[:-1], watch)
    if not norms[-1] > limit or not math.isfinite(norms[-1]):
        return ""
    return f"gradient norm {norms[-1]:.3g}, above {limit:.3g}"


def grad_norm_limit(before: Sequence[float], watch: WatchConfig) -> float:
    """The largest gradient norm that is no spike after those of `before`; infinite if they are too few to say."""
    logs = [math.log(norm) for norm in before if math.isfinite(norm) and norm > 0][-watch.window_steps:]
    if len(logs) < watch.min_steps:
        return math.inf
    usual, sigma = _median_and_sigma(logs)
    return math.exp(usual + max(watch.grad_norm_spike_sigmas * sigma, math.log(_LEAST_NORM_FACTOR)))


def _dead_expert(steps: Sequence[Record], watch: WatchConfig) -> str:
    return _experts(steps, watch, lambda ratio: ratio < watch.dead_expert_ratio, min)


def _overloaded_expert(steps: Sequence[Record], watch: WatchConfig) -> str:
    return _experts(steps, watch, lambda ratio: ratio > watch.overloaded_expert_ratio, max)


def _experts(steps: Sequence[Record], watch: WatchConfig, is_sick, worst) -> str:
    """The experts whose share of the tokens, as a ratio to an equal share, is sick; the worst one first."""
    last = steps[-watch.min_steps:]
    if len(last) < watch.min_steps or not all(record.get("expert_load") for record in last):
        return ""
    ratios = {}
    for layer, loads in enumerate(zip(*(record["expert_load"] for record in last), strict=True)):
        for expert, shares in enumerate(zip(*loads, strict=True)):
            ratios[layer, expert] = fmean(shares) * len(loads[0])
    sick = {place: ratio for place, ratio in ratios.items() if is_sick(ratio)}
    if not sick:
        return ""
    layer, expert = worst(sick, key=sick.get)
    more = f", and {len(sick) - 1} more" if len(sick) > 1 else ""
    return (f"layer {layer} expert {expert} gets {sick[layer, expert]:.2f} of an equal share of the tokens, mean of {len(last)} "
            f"steps{more}")


def _slow(steps: Sequence[Record], watch: WatchConfig) -> str:
    before, last = _window(steps, "tflops_per_second_per_gpu", watch, watch.slow_steps)
    if len(before) < watch.min_steps or len(last) < watch.slow_steps:
        return ""
    usual, now = median(before), median(last)
    if now >= watch.slow_ratio * usual:
        return ""
    return f"{now:.3g} TFLOP/s a GPU, {now / usual:.0%} of the usual {usual:.3g} (medians of {len(last)} and {len(before)} steps)"


def _window(steps: Sequence[Record], name: str, watch: WatchConfig, num_last: int) -> tuple[list[float], list[float]]:
    """(the finite numbers of the window before the last steps, those of the last steps)."""
    numbers = [_number(record, name) for record in steps[-watch.window_steps - num_last:]]
    return [[number for number in part if math.isfinite(number)] for part in (numbers[:-num_last], numbers[-num_last:])]


def _median_and_sigma(numbers: Sequence[float]) -> tuple[float, float]:
    middle = median(numbers)
    return middle, 1.4826 * median(abs(number - middle) for number in numbers)


def _number(record: Record, name: str) -> float:
    """metrics.jsonl holds a number that is not finite as a string, which `float` reads."""
    return float(record.get(name, math.nan))


class UpdateGuard:
    """Are the gradients of this step to be applied? It sees every step's norm in turn.

    No, if the norm is not finite (so that not even a run that ends here has spoilt weights), or if it is a spike and
    `watch.grad_norm_spike` says skip_step. A norm that was refused counts for what is usual, so a lasting change is
    accepted after half a window at the latest; `watch.max_skipped_steps` comes before.
    """

    def __init__(self, watch: WatchConfig, history: Iterable[Record]):
        steps = [record for record in history if "loss" in record]
        self._watch = watch
        self._norms = deque((_number(record, "grad_norm") for record in steps), maxlen=watch.window_steps)
        self.num_skipped = int(steps[-1].get("skipped_in_a_row", 0)) if steps else 0

    def refuses(self, grad_norm: float) -> bool:
        is_spike = self._watch.grad_norm_spike == "skip_step" and grad_norm > grad_norm_limit(self._norms, self._watch)
        self._norms.append(grad_norm)
        return is_spike or not math.isfinite(grad_norm)

    def count(self, is_skipped: bool) -> int:
        """How many updates have been skipped in a row, after this step."""
        self.num_skipped = self.num_skipped + 1 if is_skipped else 0
        return self.num_skipped


def why_end(watch: WatchConfig, step: int, loss: float, grad_norm: float, num_skipped: int) -> str:
    """Why the run cannot go on after this step, which must then not be saved; an empty string if it can."""
    is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if not is_finite and (watch.non_finite == "stop" or not num_skipped):
        return f"step {step} has loss {loss} and gradient norm {grad_norm}"
    if num_skipped > watch.max_skipped_steps:
        return (f"{num_skipped} updates in a row were skipped (watch.max_skipped_steps={watch.max_skipped_steps}), the last at "
                f"step {step} with loss {loss} and gradient norm {grad_norm}")
    return ""
