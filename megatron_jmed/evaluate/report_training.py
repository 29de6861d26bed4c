"""Which pictures tell how a training went: losses, gradients, speed, the load of its experts?

In: a `Run`. Out: figures (HTML text). Invariant: no picture without what it is about in words, and none of what was not recorded.
"""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from megatron_jmed.evaluate.page import figure
from megatron_jmed.evaluate.run import Run
from megatron_jmed.evaluate.svg import Line, Panel, heat_map, line_chart

TOKENS_AXIS = "tokens trained on"
NUM_PARTS = 24  # columns of the picture of expert load over time
END_RECORDS = 10  # "at the end" means the mean over this many last records, so that one odd batch does not decide


def training_parts(run: Run) -> list[str]:
    """Left the loss, right what was validated and how fast it went."""
    steps = run.metrics.training
    if not steps:
        return []
    panels = _panels(steps, [("loss", "training loss (nats per token)"), ("aux_loss", "router auxiliary loss"),
                             ("grad_norm", "gradient norm"), ("lr", "learning rate")])  # fmt: skip
    alt = "Training loss, gradient norm and learning rate over tokens"
    caption = "Lines are means of neighbouring steps; the band reaches from their smallest to their largest value."
    loss = figure("Loss, gradient and learning rate", caption, line_chart(alt, panels, TOKENS_AXIS))
    right = [*_validation_figures(run.metrics.validation), *_source_figures(steps), *_speed_figures(run)]
    return [loss, f'<div class="stack">{"".join(right)}</div>']


def _validation_figures(records: Sequence[dict[str, Any]]) -> list[str]:
    if not records:
        return []
    sources = sorted({source for record in records for source in record["valid_loss"]})
    lines = []
    for source in sources:
        mine = [r for r in records if source in r["valid_loss"]]
        lines.append(Line(source, [r["tokens"] for r in mine], [r["valid_loss"][source] for r in mine], dots=True))
    chart = line_chart(
        "Validation loss of each source over tokens", [Panel("validation loss (nats per token)", lines)], TOKENS_AXIS,
        panel_height=190,
    )  # fmt: skip
    return [figure("Validation loss by source", "Held-out text of each source of the blend.", chart, sources, of_lines=True)]


def _source_figures(steps: Sequence[dict[str, Any]]) -> list[str]:
    """The training loss of each source, where there are several."""
    sources = sorted({source for r in steps for source in r.get("loss_by_source", {})})
    if len(sources) < 2:
        return []
    lines = []
    for source in sources:
        mine = [r for r in steps if source in r.get("loss_by_source", {})]
        lines.append(Line(source, [r["tokens"] for r in mine], [r["loss_by_source"][source] for r in mine], banded=True))
    chart = line_chart("Training loss of each source over tokens", [Panel("training loss (nats per token)", lines)], TOKENS_AXIS,
                       panel_height=150)
    return [figure("Training loss by source", "Of the tokens that each step read from it.", chart, sources, of_lines=True)]


def _speed_figures(run: Run) -> list[str]:
    panels = _panels(
        run.metrics.training,
        [("tokens_per_second", "tokens per second, whole job"), ("tflops_per_second_per_gpu", "TFLOP/s per GPU"),
         ("step_seconds", "seconds per step")],
        from_zero=True,
    )  # fmt: skip
    if not panels:
        return []
    chart = line_chart("Throughput over tokens", panels, TOKENS_AXIS, panel_height=130)
    return [
        figure(
            "Throughput", "Medians are at the top of the page; short dips are usually checkpoints or validation.", chart
        )
    ]


def _panels(steps: Sequence[dict[str, Any]], wanted: Sequence[tuple[str, str]], from_zero: bool = False) -> list[Panel]:
    """A panel for every wanted key that was recorded."""
    panels = []
    for key, label in wanted:
        mine = [r for r in steps if r.get(key) is not None]
        if not mine:
            continue
        line = Line(key, [r["tokens"] for r in mine], [r[key] for r in mine], banded=True)
        panels.append(Panel(label, [line], from_zero=from_zero or key == "lr", may_be_log=key == "grad_norm"))
    return panels


def finite(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    values = [r[key] for r in records if r.get(key) is not None]
    return [value for value in values if abs(value) < float("inf")]


# --- experts -------------------------------------------------------------------------------------------------------


def is_dense(run: Run) -> bool:
    return run.config.get("model", {}).get("num_experts") == 0


def load_ratios(run: Run) -> list[list[float]]:
    """Layers x experts: the load of an expert relative to the mean of its layer, over the last records."""
    records = [r["expert_load"] for r in run.metrics.training if r.get("expert_load")][-END_RECORDS:]
    if not records:
        return []
    means = [[statistics.fmean(shares) for shares in zip(*layer, strict=True)] for layer in zip(*records, strict=True)]
    return [[share * len(layer) / (sum(layer) or 1) for share in layer] for layer in means]


def load_over_time(run: Run) -> tuple[int, list[list[float]]]:
    """The layer that ends least balanced, and the load of its experts (rows) in parts of the run (columns), 1 = their mean."""
    layer = max(enumerate(map(max, load_ratios(run))), key=lambda item: item[1])[0]
    loads = [r["expert_load"][layer] for r in run.metrics.training if r.get("expert_load")]
    num_parts = min(NUM_PARTS, len(loads))
    ends = [round(i * len(loads) / num_parts) for i in range(num_parts + 1)]
    parts = [loads[start:end] for start, end in pairwise(ends)]
    means = [[statistics.fmean(shares) for shares in zip(*part, strict=True)] for part in parts]
    ratios = [[share * len(mean) / (sum(mean) or 1) for share in mean] for mean in means]
    return layer, [list(row) for row in zip(*ratios, strict=True)]


def expert_figures(run: Run) -> list[str]:
    ratios = load_ratios(run)
    if not ratios:
        return []
    by_expert = [list(column) for column in zip(*ratios, strict=True)]
    heat = heat_map("Load of every expert in every layer relative to its layer's mean", by_expert, "expert", "layer")
    key = '<ul class="legend"><li><i class="hot"></i>above the mean</li><li><i class="cold"></i>below</li></ul>'
    caption = f"1 is an equal share; colour is full at the double and the half. Mean of the last {END_RECORDS} records."
    records = [r for r in run.metrics.training if r.get("expert_load")]
    worst = [[max(layer) * len(layer) / (sum(layer) or 1) for layer in r["expert_load"]] for r in records]
    xs = [r["tokens"] for r in records]
    lines = [Line("worst layer", xs, [max(w) for w in worst], banded=True),
             Line("mean of the layers", xs, [statistics.fmean(w) for w in worst], banded=True)]  # fmt: skip
    worst_case = f"1 is balanced; {len(by_expert)} would be all tokens with one expert."
    panel = Panel("busiest expert / mean load of its layer", lines, marks=((1.0, "balanced"),))
    chart = line_chart("Imbalance of expert load over tokens", [panel], TOKENS_AXIS, width=1130, panel_height=180)
    layer, rows = load_over_time(run)
    course = heat_map(f"Load of every expert of layer {layer} over the run", rows, "expert", "part of the run")
    told = f"Layer {layer} is the one that ends least balanced; the run is cut into {len(rows[0])} equal parts, oldest left."
    return [
        figure("Expert load at the end, relative to the layer's mean", caption, key + heat, wide=True),
        figure(f"Expert load over time, layer {layer}", told, key + course, wide=True),
        figure("Imbalance over time", worst_case, chart, [x.name for x in lines], wide=True, of_lines=True),
    ]
