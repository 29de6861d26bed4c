"""Which documents hold a question of an exam, word for word or nearly, in the exam's language or in translation?

In: a source of documents and exam folders (exam_texts.py). Out: a stage folder (stage.py) without the documents in which a
question was found (exam_index.py), or with them flagged, and TARGET/contamination.json: question -> the documents that
hold it, and which questions could not be looked for.
Invariant: what a document was removed or flagged for stands in its `meta`, from which the report is made.
"""

import functools
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from megatron_jmed.corpus.document import Document, read_documents
from megatron_jmed.corpus.exam_index import ExamIndex
from megatron_jmed.corpus.exam_question import RULES
from megatron_jmed.corpus.exam_texts import ExamText, exam_texts
from megatron_jmed.corpus.manifest import MANIFEST_NAME, Manifest, load_manifest
from megatron_jmed.corpus.stage import Kept, Removed, Transform, merge_shards, run_stage
from megatron_jmed.errors import CorpusError

STAGE = "decontaminate"
REASON = "exam_question"
REPORT_NAME = "contamination.json"
META_FIELD = "contamination"

Action = Literal["remove", "flag"]


def decontaminate(
    source: Path,
    target: Path,
    exams: Sequence[Path],
    action: Action = "remove",
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    **words: Any,
) -> Manifest:
    """Remove (or flag in `meta`) the documents of `source` that hold a question, and write TARGET/contamination.json.

    A shard has no such report: it is about the whole corpus, so `merge_decontaminated` writes it. `words` go to
    `run_stage`: workers, text_field, max_bad, progress, licence.
    """
    texts = _all_texts(exams)
    settings = {
        "action": action,
        "exams": [path.name for path in map(Path, exams)],
        "exams_sha256": _exams_sha256(texts),
        "rules": {name: asdict(rule) for name, rule in RULES.items()},
    }
    make = functools.partial(make_transform, tuple(map(Path, exams)), action)
    if shard:
        return run_stage(STAGE, source, target, settings, make, overwrite=overwrite, shard=shard, **words)
    _delete_old_report(Path(target), overwrite)
    manifest = run_stage(STAGE, source, target, settings, make, overwrite=overwrite, **words)
    return _with_report(Path(target), manifest, texts)


def merge_decontaminated(
    target: Path, exams: Sequence[Path], overwrite: bool = False, max_bad: int | None = None
) -> Manifest:
    """Publish the shards in TARGET as one run with these exams would have, with its report."""
    target, texts = Path(target), _all_texts(exams)
    shards = [path.parent for path in sorted(target.glob(f"shard-*-of-*/{MANIFEST_NAME}"))]
    is_left = (target / MANIFEST_NAME).exists() and not overwrite
    for folder in shards or ([target] if is_left else []):
        manifest = load_manifest(folder)
        if manifest.stage != STAGE:
            raise CorpusError(f"{folder} is the result of stage {manifest.stage!r}; merge it with its own tool")
        if manifest.settings["exams_sha256"] != _exams_sha256(texts):
            there = ", ".join(manifest.settings["exams"])
            raise CorpusError(f"{folder} was made with other exams ({there}, or other questions in them); give the same --exams")
    return _with_report(target, merge_shards(target, overwrite, max_bad, (REPORT_NAME, f"{REPORT_NAME}.tmp")), texts)


def _exams_sha256(texts: Sequence[ExamText]) -> str:
    lines = "\n".join(json.dumps(asdict(text), ensure_ascii=False, sort_keys=True) for text in texts)
    return hashlib.sha256(lines.encode()).hexdigest()


def _delete_old_report(target: Path, overwrite: bool) -> None:
    """Unless the target is finished and stays: no report may stand beside documents that it is not about."""
    # It is no output of the runner either, which refuses a folder with files it does not know.
    if overwrite or not (target / MANIFEST_NAME).exists():
        for old in (REPORT_NAME, f"{REPORT_NAME}.tmp"):
            (target / old).unlink(missing_ok=True)


def _with_report(target: Path, manifest: Manifest, texts: Sequence[ExamText]) -> Manifest:
    if not (target / REPORT_NAME).exists():
        write_report(target, texts, manifest.settings["action"])
    return manifest


def _all_texts(exams: Sequence[Path]) -> list[ExamText]:
    texts = [text for folder in exams for text in exam_texts(folder)]
    twice = [key for key, num in Counter((text.question_id, text.form) for text in texts).items() if num > 1]
    if twice:
        raise CorpusError(f"{len(twice)} question(s) occur twice in the exams, first {twice[0][0]} ({twice[0][1]})")
    return texts


def make_transform(exams: Sequence[Path], action: Action) -> Transform:
    """What each worker does with a document."""
    index = ExamIndex(_all_texts(exams))
    return functools.partial(_treat, index, action)


def _treat(index: ExamIndex, action: Action, document: Document) -> Kept | Removed:
    hits = index.find(document.text)
    if not hits:
        return Kept(document)
    found = [asdict(hit) for hit in hits]
    flagged = replace(document, meta={**document.meta, META_FIELD: found})
    if action == "flag":
        return Kept(flagged, {"flagged": 1})
    return Removed(flagged, REASON, ", ".join(hit.question_id for hit in hits))


# ---- the report


def write_report(target: Path, texts: Sequence[ExamText], action: Action) -> None:
    """Collect the findings that the stage left with its documents into TARGET/contamination.json."""
    removed = target / "removed" / f"{REASON}.jsonl.zst"
    # The kept documents are read only if findings may stand there: they are nearly all of the corpus.
    places = sorted((target / "documents").rglob("*.jsonl.zst")) if action == "flag" else [removed] if removed.exists() else []
    questions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in places:
        for document in read_documents(path):
            meta = document.meta["meta"] if path == removed else document.meta
            for hit in meta.get(META_FIELD) or ():
                where = {"document": document.id, "source": document.source, "removed": path == removed}
                questions[hit["question_id"]].append({**where, **{k: v for k, v in hit.items() if k != "question_id"}})
    index = ExamIndex(texts)
    report = {
        "format_version": 1,
        "num_questions": len(index.question_ids),
        "question_ids": index.question_ids,
        "not_testable": [{"question_id": text.question_id, "form": text.form} for text in index.not_testable],
        "questions": dict(sorted(questions.items())),
    }
    temporary = target / f"{REPORT_NAME}.tmp"
    temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, target / REPORT_NAME)
