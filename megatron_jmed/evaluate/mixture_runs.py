"""What did each run of a mixture study really read, and what came of it?

In: run folders that training has finished (config.json, metrics.jsonl, blend.json, `done`, scores/*.json), and what is known of
their texts (mixture_texts.py). Out: one `StudyRun` of plain numbers a run. Invariant: every run has the same features and the same
targets, or the study is refused; the result depends on the folders alone.

Shares and features are of the tokens read (`consumed_tokens` of blend.json at the last step), never of what was planned.

| feature | of a run |
|---|---|
| share G; share domain D | of the tokens read, by group (language, "+mt": machine-translated) or domain of the plan |
| tokens read; unique tokens | in all; a source that is read e times counts min(e, 1) times its training tokens |
| epochs; epochs max | tokens read / unique tokens; of the source that was read most often |
| base perplexity | exp of the base model's validation losses by source, weighted by the tokens read |
| and of the texts | see mixture_texts.py |

A feature or score that is the same in all runs teaches nothing and is left out, and so is a feature that a source's texts do not
give; both are said.

Targets are mixture_scores.py's.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.errors import ExamError, some_of
from megatron_jmed.evaluate.mixture_scores import LOSS, exam_targets, loss_targets, scaling_points
from megatron_jmed.evaluate.report_exams import latest_of_each
from megatron_jmed.evaluate.run import Run, read_run


@dataclass(frozen=True)
class StudyRun:
    """One run: the shares of what it read by group (they add up to 1), features and scores by name, and for each exam which
    questions were answered right. `is_base`: the mixture that is repeated with seeds, so that chance is measured."""

    name: str
    seed: int
    is_base: bool
    tokens_read: int
    shares: dict[str, float]
    features: dict[str, float]
    scores: dict[str, float]
    items: dict[str, dict[str, bool]]


@dataclass(frozen=True)
class ReadSource:
    """What a run read of one source; `train_tokens` are those of one epoch, `groups` its shares by group."""

    name: str
    path: str
    tokens: int
    train_tokens: float
    groups: Mapping[str, float]

    @property
    def epochs(self) -> float:
        return self.tokens / self.train_tokens


# What is known of the texts of the sources that were read, as features; None where a source does not give one.
TextFeatures = Callable[[Sequence[ReadSource], float], dict[str, float | None]]


@dataclass(frozen=True)
class Study:
    """The runs of a study in the order of their names, and what the reader must know of how they were read."""

    runs: tuple[StudyRun, ...]
    scaling: list[dict[str, Any]]
    notes: tuple[str, ...]


def lower_is_better(target: str) -> bool:
    """Losses are; accuracies are not."""
    return target.startswith(LOSS)


def read_study(
    folders: Sequence[Path],
    texts: TextFeatures | None = None,
    *,
    design: Mapping[str, Any] | None = None,
    domains: Mapping[str, str] | None = None,
    base_losses: Mapping[str, float] | None = None,
    method: str | None = None,
    allow_unfinished: bool = False,
) -> Study:
    """Read run folders (or folders of them); ExamError for one that is none, unfinished, or not like the others.

    `design` is design.json; without it the blend that most runs share is taken for the base. `domains` maps sources to domains,
    `base_losses` to the base model's losses. `method` says how options are compared; default: each scores file's first.
    """
    paths = run_folders(folders)
    unfinished = [path.name for path in paths if not (path / "done").exists()]
    if unfinished and not allow_unfinished:
        raise ExamError(
            f"{len(unfinished)} of {len(paths)} runs are not finished: {some_of(unfinished)}; wait for them, or leave "
            "them out with --allow-unfinished"
        )
    runs = [read_run(path) for path in paths if path.name not in unfinished]
    if not runs:
        raise ExamError("no finished run to study")
    bases = _bases(runs, design)
    found = [_study_run(run, run.name in bases, texts, domains, base_losses, method) for run in runs]
    notes = (
        [f"{len(unfinished)} of {len(paths)} runs were not finished and are left out: {some_of(unfinished)}."] if unfinished else []
    )
    if absent := sorted({run["name"] for run in (design or {"runs": []})["runs"]} - {path.name for path in paths}):
        notes.append(f"{len(absent)} runs of the design are not among these: {some_of(absent)}.")
    if early := [run.name for run in runs if _ends_unvalidated(run)]:
        notes.append(f"The last validation losses are of a step before the last in {some_of(early)}.")
    found, dropped = _comparable(found)
    return Study(tuple(found), [scaling_points(run) for run in runs], (*notes, *dropped))


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """The run folders among `folders` and, where one is a study's or sweep's, in it; in the order of their names."""
    found: list[Path] = []
    for folder in folders:
        inside = [] if (folder / "config.json").exists() else sorted(path.parent for path in folder.glob("*/config.json"))
        found += inside or [folder]
    for folder in found:
        if not (folder / "config.json").exists():
            raise ExamError(f"{folder}: no run folder and no folder of runs; expected config.json in it, as training writes it")
    names = Counter(path.resolve().name for path in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ExamError(f"runs are told apart by the names of their folders, and {some_of(twice)} occurs twice; rename one")
    return sorted((path.resolve() for path in found), key=lambda path: path.name)


def _ends_unvalidated(run: Run) -> bool:
    training, validation = run.metrics.training, run.metrics.validation
    return bool(training and validation) and validation[-1]["step"] < training[-1]["step"]


# --- what was read -------------------------------------------------------------------------------------------------


def _bases(runs: Sequence[Run], design: Mapping[str, Any] | None) -> set[str]:
    """The names of the runs of the base mixture."""
    if design is not None:
        designed = {run["name"]: run for run in design["runs"]}
        if strange := sorted(run.name for run in runs if run.name not in designed):
            raise ExamError(
                f"{some_of(strange)}: not in the design, which has {some_of(list(designed))}; give the runs of this design, "
                "or leave --design away"
            )
        return {name for name, run in designed.items() if run["is_base"]}
    blends = defaultdict(list)
    for run in runs:
        blends[json.dumps([[s["name"], s["planned_tokens"]] for s in run.blend])].append(run.name)
    most = max(blends.values(), key=len)
    return set(most) if len(most) > 1 else set()


def read_sources(run: Run) -> list[ReadSource]:
    """The sources of a run's blend.json; ExamError where it is missing or was written before the end."""
    if not run.blend:
        raise ExamError(f"{run.name}: no blend.json, so what it read is not known; training writes it at every checkpoint")
    valid_ratio = run.config.get("data", {}).get("valid_ratio", 0.0)
    sources = []
    for source in run.blend:
        if "consumed_tokens" not in source:
            raise ExamError(f"{run.name}: blend.json: source {source['name']} lacks consumed_tokens; it is a plan, not an account")
        whole = source["num_tokens"] * (1 - valid_ratio)
        train_tokens = source["consumed_tokens"] / source["epochs"] if source["epochs"] else whole
        sources.append(ReadSource(source["name"], source["path"], source["consumed_tokens"], train_tokens, _groups(source)))
    if not sum(source.tokens for source in sources):
        raise ExamError(f"{run.name}: blend.json: no token was read")
    return sources


def _groups(source: Mapping[str, Any]) -> dict[str, float]:
    """A source's shares by group; its token set is asked for what blend.json does not say."""
    langs, origin = {source["lang"]: 1.0} if source["lang"] else None, source.get("origin")
    if langs is None or (origin is None and Path(source["path"]).exists()):
        token_set = load_token_set(source["path"])
        langs = langs or dict(token_set.lang_share)
        origin = origin or getattr(token_set, "origin", None)
    mark = "+mt" if origin == "machine_translated" else ""
    return {lang + mark: share for lang, share in langs.items()}


def _study_run(
    run: Run,
    is_base: bool,
    texts: TextFeatures | None,
    domains: Mapping[str, str] | None,
    base_losses: Mapping[str, float] | None,
    method: str | None,
) -> StudyRun:
    sources = read_sources(run)
    valid_ratio = run.config.get("data", {}).get("valid_ratio", 0.0)
    total = sum(source.tokens for source in sources)
    shares: dict[str, float] = defaultdict(float)
    for source in sources:
        for group, share in source.groups.items():
            shares[group] += share * source.tokens / total
    unique = sum(min(1.0, source.epochs) * source.train_tokens for source in sources)
    features: dict[str, float | None] = {f"share {group}": share for group, share in sorted(shares.items())}
    features |= _domain_shares(sources, domains or {}, total)
    features |= {
        "tokens read": total,
        "unique tokens": unique,
        "epochs": total / unique,
        "epochs max": max(source.epochs for source in sources),
    }
    if base_losses is not None:
        features["base perplexity"] = _base_perplexity(run.name, sources, base_losses, total)
    features |= texts(sources, valid_ratio) if texts else {}
    scores, items = loss_targets(run), {}
    for sitting in latest_of_each(run.scores):
        of_exam, items[sitting["exam"]] = exam_targets(run.name, sitting, method)
        scores |= of_exam
    return StudyRun(run.name, run.config.get("seed", 0), is_base, total, dict(sorted(shares.items())), features, scores, items)


def _domain_shares(sources: Sequence[ReadSource], domains: Mapping[str, str], total: int) -> dict[str, float]:
    shares: dict[str, float] = defaultdict(float)
    for source in sources:
        if source.name in domains:
            shares[f"share domain {domains[source.name]}"] += source.tokens / total
    return dict(sorted(shares.items()))


def _base_perplexity(name: str, sources: Sequence[ReadSource], losses: Mapping[str, float], total: int) -> float:
    if missing := [source.name for source in sources if source.tokens and source.name not in losses]:
        raise ExamError(f"{name}: the base model was not validated on {some_of(missing)}; it has {some_of(sorted(losses))}")
    return math.exp(sum(source.tokens / total * losses[source.name] for source in sources if source.tokens))


# --- all runs ------------------------------------------------------------------------------------------------------


def _comparable(runs: list[StudyRun]) -> tuple[list[StudyRun], list[str]]:
    """The runs without the features and scores that cannot be used, and sentences about those; ExamError where names differ."""
    _check_same("features", {run.name: set(run.features) for run in runs}, "study runs of one plan, read in the same way")
    _check_same(
        "scores", {run.name: set(run.scores) for run in runs}, "validate the same sources and take the same exams in every run"
    )
    names = list(runs[0].features)
    unknown = [name for name in names if any(run.features[name] is None for run in runs)]
    features, same_features = _varied([{name: run.features[name] for name in names if name not in unknown} for run in runs])
    scores, same_scores = _varied([run.scores for run in runs])
    notes = [f"Features that a source's texts do not give are left out: {some_of(unknown)}."] if unknown else []
    for what, same in (("Features", same_features), ("Scores", same_scores)):
        if same:
            notes.append(f"{what} that are the same in all runs teach nothing and are left out: {some_of(same)}.")
    rows = zip(runs, features, scores, strict=True)
    return [
        StudyRun(**{**vars(run), "features": its_features, "scores": its_scores}) for run, its_features, its_scores in rows
    ], notes


def _varied(values: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[str]]:
    """What differs between the runs, and the names of what does not; of a single run everything."""
    same = [name for name in values[0] if len({round(its[name], 12) for its in values}) == 1 and len(values) > 1]
    return [{name: value for name, value in its.items() if name not in same} for its in values], same


def _check_same(what: str, names: Mapping[str, set[str]], remedy: str) -> None:
    every = set().union(*names.values())
    differ = [f"{run} lacks {some_of(sorted(every - its), 4)}" for run, its in names.items() if every - its]
    if differ:
        raise ExamError(f"the {what} of the runs differ: {some_of(differ)}; {remedy}")
