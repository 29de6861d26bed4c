"""The report is one well-formed page that shows the numbers of the run and admits what is missing."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_jmed.errors import ExamError
from megatron_jmed.evaluate.report import render_report, write_report
from megatron_jmed.evaluate.run import read_metrics, read_run
from megatron_jmed.evaluate.score import save_scores, score_records
from megatron_jmed.evaluate.svg import axis_numbers, bin_means, heat_strength, nice_ticks, short_number

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects text and attributes, and fails on any tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "svg" and ("aria-hidden", "true") not in attrs:
            self.pictures.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def training_record(step: int, loss: float, **more: Any) -> dict[str, Any]:
    record = {
        "step": step, "tokens": step * 4096, "loss": loss, "aux_loss": 0.011, "grad_norm": 0.5, "lr": 3e-5,
        "tokens_per_second": 2000.0, "tflops_per_second_per_gpu": 1.5, "step_seconds": 2.0,
        "expert_load": [[0.4, 0.2, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]],
    }  # fmt: skip
    return record | more


def exam_scores(num_correct: int) -> dict[str, Any]:
    """100 single questions of five options of which `num_correct` are right by sum, and none per token; one numeric."""
    facts = {"year": 2018, "paper": "A", "subject": "循環器", "category": "", "lang": "ja",
             "essential": False, "withdrawn": False, "type": "single", "needs_image": False, "points": 1,
             "num_choices": 5, "num_to_pick": 1, "answers": [["c"]], "always_correct": False, "forbidden": ["e"],
             "not_scored": None, "num_truncated_tokens": 0}  # fmt: skip
    picked = [{"sum": ["c" if n < num_correct else "a"], "per_token": ["b"]} for n in range(100)]
    records = [facts | {"id": f"112A{n}", "picked": p, "subject": ("循環器", "内科")[n % 2]} for n, p in enumerate(picked)]
    records.append(facts | {"id": "112A100", "not_scored": "asks for a number", "picked": {}})
    head = {"format_version": 2, "exam": "igakuqa", "model": {"name": "<i>tiny/hf", "fingerprint": "0"}, "num_shots": 0}
    return head | score_records(records, ("sum", "per_token"))


@pytest.fixture
def run_folder(tmp_path: Path, samples: SimpleNamespace) -> Path:
    """A run of 20 steps that was stopped after step 12 and resumed from step 10."""
    folder = tmp_path / "tiny_run"
    (folder / "scores").mkdir(parents=True)
    records = [training_record(step, 9.0) for step in range(1, 13)]
    records += [training_record(step, 4.0 - step / 10) for step in range(11, 21)]
    records.append({"step": 20, "tokens": 20 * 4096, "valid_loss": {"papers_ja": 4.2, "web_en": 5.2}})
    samples.write_jsonl(folder / "metrics.jsonl", records)
    config = {
        "name": "<tiny> & 小さい", "model": {"num_layers": 2, "hidden_size": 64, "num_experts": 4, "router_topk": 2},
        "parallel": {"tp": 1, "pp": 1}, "precision": {"compute": "fp32"}, "optim": {"peak_lr": 3e-5},
        "budget": {"total_tokens": 163840},
    }  # fmt: skip
    source = {"path": "tokens/x", "num_documents": 12345, "planned_tokens": 61440, "epochs": 1.25}
    blend = {
        "total_tokens": 81920,
        "sources": [
            source | {"name": "papers_ja", "lang": "ja", "weight": 3.0, "num_tokens": 49152, "consumed_tokens": 61000},
            source | {"name": "web_en", "lang": "en", "weight": 1.0, "num_tokens": 16384, "planned_tokens": 20480},
        ],
    }  # fmt: skip
    for name, content in (
        ("config", config),
        ("blend", blend),
        ("run", {"world_size": 1, "started": "2026-01-02T03:04:05"}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for step in (10, 20):
        (folder / f"checkpoints/step_{step}").mkdir(parents=True)
        (folder / f"checkpoints/step_{step}/state.json").write_text(json.dumps({"step": step, "tokens": step * 4096}))
    (folder / "checkpoints/step_15").mkdir()  # without state.json: was never finished
    save_scores(exam_scores(60), folder / "scores/igakuqa.json")
    return folder


def test_page_is_whole_and_needs_no_network(run_folder: Path) -> None:
    target = write_report(run_folder)
    assert target == run_folder / "report.html"
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.pictures) == 10
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 10 for picture in page.pictures)
    assert "http" not in text and "<script" not in text and "@import" not in text and "url(" not in text
    assert not [name for name, _ in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert "nan" not in " ".join(value or "" for _, value in page.attributes)
    assert "prefers-color-scheme: dark" in text
    assert "<tiny> & 小さい" in page.text  # escaped, and shown as it is
    write_report(run_folder, run_folder / "again.html")
    assert (run_folder / "again.html").read_text(encoding="utf-8") == text


def test_numbers_of_the_run_are_shown(run_folder: Path) -> None:
    text = Page(render_report(read_run(run_folder))).text
    expected_loss = sum(4.0 - step / 10 for step in range(11, 21)) / 10
    for shown in (
        "81.9 k 50% of 164 k planned; 20 steps",
        f"Training loss {expected_loss:.3f}",
        "Validation loss 4.700 2 sources, step 20",
        "2,000 1.5 TFLOP/s per GPU",
        "Busiest expert 1.60 × the mean load of its layer (layer 0)",
        "accuracy 60.0% 50.2–69.1%; chance 20.0%: above chance",
        "60 of 100", "59.4%",  # over all 101 questions
        "75.0% · 1.25 epochs", "25.0% · 1.25 epochs", "12,345", "61,000",
        "10 40,960", "20 81,920", "2026-01-02T03:04:05",
        "igakuqa: 1 of 101 questions were not scored (asks for a number).",
        "2 records were replaced after a resume",
        "peak_lr 3e-05", "num_experts 4",
    ):  # fmt: skip
        assert shown in text, shown
    assert "15 61,440" not in text


def test_every_heat_and_bar_has_its_size(run_folder: Path) -> None:
    page = render_report(read_run(run_folder))
    assert "layer 0, expert 0: 1.60" in page and "layer 1, expert 3: 1.00" in page
    widths = [float(w) for w in re.findall(r'<rect x="150" [^>]*width="([\d.]+)"', page)][:4]
    assert widths[2] / widths[0] == pytest.approx(1 / 3, abs=0.01)  # 25 % against 75 % planned
    assert widths[1] > 0 and widths[3] == 0  # nothing consumed of the second source


@pytest.mark.parametrize(("num_correct", "says"), [(20, True), (60, False)])
def test_luck_is_called_luck(run_folder: Path, num_correct: int, says: bool) -> None:
    save_scores(exam_scores(num_correct), run_folder / "scores/igakuqa.json")
    text = Page(render_report(read_run(run_folder))).text
    assert ("chance 20.0%: not distinguishable from chance" in text) is says
    assert ("igakuqa (compared by sum): not distinguishable from chance." in text) is says
    assert "below chance" in text  # per token none is right


def test_dense_model_is_said_to_be_one(run_folder: Path) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    config["model"] |= {"num_experts": 0, "router_topk": 0}
    (run_folder / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line | {"expert_load": []}) + "\n" for line in lines))
    text = Page(render_report(read_run(run_folder))).text
    assert "2 layers of width 64 · dense" in text and "the model is dense: it has no experts" in text
    assert "0 experts" not in text and "Busiest expert" not in text


def test_what_is_missing_is_said_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    page = Page(render_report(read_run(folder)))
    for words in (
        "no exam was taken",
        "no training step",
        "no expert load",
        "no blend.json",
        "no checkpoint was saved",
    ):
        assert words in page.text
    (folder / "config.json").unlink()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 9, "loss": 3.0}) + '\n{"step": 2, "tok')
    page = Page(render_report(read_run(folder)))
    assert "no config.json" in page.text and "No validation was run." in page.text
    assert "last line of metrics.jsonl is incomplete" in page.text


def test_infinite_and_absent_values_do_not_break_the_page(tmp_path: Path, samples: SimpleNamespace) -> None:
    bad = [training_record(1, float("nan")), training_record(2, 2.0, grad_norm=float("inf"), aux_loss=None)]
    samples.write_jsonl(tmp_path / "run/metrics.jsonl", bad)
    page = Page(render_report(read_run(tmp_path / "run")))
    assert "loss was not a finite number at 1 of 2 steps" in page.text
    assert "grad_norm was not a finite number at 1 of 2 steps" in page.text
    assert not [value for _, value in page.attributes if value and re.search(r"\b(nan|inf)\b", value)]


def test_alarms_are_told_and_numbers_that_training_wrote_as_strings_are_read(tmp_path: Path, samples: SimpleNamespace) -> None:
    alarm = {"name": "non_finite", "step": 2, "action": "skip_step", "sentence": "loss nan, gradient norm inf"}
    bad = {**training_record(2, "nan", grad_norm="inf"), "loss_by_source": {"a": "nan"}, "skipped_in_a_row": 1}
    records = [training_record(1, 2.0), bad, {"step": 2, "tokens": 9, "alarm": alarm}, training_record(3, 2.0),
               {"step": 3, "tokens": 9, "save": {"stall_seconds": 0.1, "seconds": 2.0}}]
    samples.write_jsonl(tmp_path / "run/metrics.jsonl", records)
    page = Page(render_report(read_run(tmp_path / "run")))
    assert "Alarm non_finite at step 2 (skip_step): loss nan, gradient norm inf." in page.text
    assert "loss was not a finite number at 1 of 3 steps" in page.text
    samples.write_jsonl(tmp_path / "metrics.jsonl", [*records[:3], training_record(2, 2.0)])
    assert read_metrics(tmp_path / "metrics.jsonl").alarms == ()


def test_the_last_record_of_a_step_wins(tmp_path: Path, samples: SimpleNamespace) -> None:
    steps = [(1, 9.0), (2, 9.0), (3, 9.0), (4, 9.0), (3, 1.0)]  # stopped after 4, resumed from 2, now at 3
    records = [training_record(step, loss) for step, loss in steps]
    valid = [{"step": s, "tokens": s, "valid_loss": {"a": v}} for s, v in ((2, 5.0), (4, 6.0))]
    path = samples.write_jsonl(
        tmp_path / "metrics.jsonl", [*records[:2], valid[0], *records[2:4], valid[1], records[4]]
    )
    metrics = read_metrics(path)
    assert [(r["step"], r["loss"]) for r in metrics.training] == [(1, 9.0), (2, 9.0), (3, 1.0)]
    assert [r["step"] for r in metrics.validation] == [2]
    assert metrics.num_replaced == 3 and not metrics.is_cut


def test_skipped_steps_have_no_loss_and_are_no_damage(tmp_path: Path, samples: SimpleNamespace) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [training_record(step, 9.0) for step in (1, 2, 3)]
    records += [{"step": 2, "tokens": 8192, "lr": 1e-4, "skipped": True}, training_record(3, 8.0)]
    samples.write_jsonl(path, records)
    metrics = read_metrics(path)
    assert [(r["step"], r["loss"]) for r in metrics.training] == [(1, 9.0), (3, 8.0)] and metrics.num_replaced == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metrics\.jsonl:2: not JSON"),
        ('{"loss": 1.0}', r"metrics\.jsonl:2: step: missing"),
        ('{"step": 2, "loss": 1.0}', r"metrics\.jsonl:2: tokens: missing"),
        ('{"step": 2, "tokens": 5}', r"metrics\.jsonl:2: neither loss nor valid_loss"),
        ('{"step": 2, "tokens": 5, "loss": "low"}', r"metrics\.jsonl:2: loss: 'low'; expected a number"),
        ('{"step": 2, "tokens": 5, "loss": 1, "expert_load": [[0.5], [0.5, 0.5]]}', r"metrics\.jsonl:2: expert_load"),
        ('{"step": 2, "tokens": 5, "valid_loss": 3}', r"metrics\.jsonl:2: valid_loss: 3"),
    ],
)
def test_damaged_metrics_are_named_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 4, "loss": 2.0}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ExamError, match=message):
        read_metrics(path)


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ExamError, match=r"no run folder; expected config\.json or metrics\.jsonl"):
        write_report(tmp_path)


def test_damaged_blend_is_refused(run_folder: Path) -> None:
    (run_folder / "blend.json").write_text('{"sources": [{"name": "papers_ja", "lang": "ja"}]}')
    with pytest.raises(ExamError, match=r"blend\.json: sources: papers_ja lacks num_tokens"):
        read_run(run_folder)


def test_tool_writes_beside_the_run(
    run_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, samples: SimpleNamespace
) -> None:
    tool = samples.load_tool("write_report")
    monkeypatch.setattr("sys.argv", ["write_report.py", str(run_folder)])
    tool.main()
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    assert (run_folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3e-5, "3×10⁻⁵"), (0.0213, "0.0213"), (1.6, "1.6"), (409.8, "410"), (2000, "2,000"),
     (4_194_304, "4.19 M"), (79_600_000_000, "79.6 B"), (2.07e12, "2.07 T"), (-0.5, "-0.5"), (123_456, "123 k")],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert short_number(value) == text


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(1.53, 2.24, 4) == pytest.approx([1.6, 1.8, 2.0, 2.2])
    assert axis_numbers([1.6, 1.8, 2.0]) == ["1.6", "1.8", "2.0"]
    assert axis_numbers([0, 500_000, 1_000_000]) == ["0", "500 k", "1 M"]
    draw = random.Random(7)
    for _ in range(200):
        low = draw.uniform(-1e6, 1e6)
        ticks = nice_ticks(low, low + 37.0)
        assert 3 <= len(ticks) <= 8 and all(low - 1e-3 <= tick <= low + 37.001 for tick in ticks)


def test_bins_keep_spikes_and_means() -> None:
    ys = [1.0] * 1000
    ys[500] = 100.0
    bins = bin_means(range(1000), ys, num_bins=100)
    assert len(bins) == 100 and max(high for *_, high in bins) == 100.0 and min(low for _, _, low, _ in bins) == 1.0
    assert sum(mean for _, mean, _, _ in bins) / 100 == pytest.approx(sum(ys) / 1000)


def test_heat_is_equal_for_half_and_double() -> None:
    assert heat_strength(1.0) == 0
    assert heat_strength(2.0) == heat_strength(0.5) == heat_strength(8.0) == heat_strength(0.0) == 1
    assert heat_strength(2**0.5) == pytest.approx(0.5)
