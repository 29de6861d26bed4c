"""Which texts are worth training on, and in what spelling?

In: a source of documents. Out: a stage folder (see stage.py) of documents in one spelling, without boilerplate lines,
with `lang` as found; what breaks a rule is filed, as it came, under the rule's name with the numbers.
Three tables decide, in this order: SPELLING (spelling.py), BOILERPLATE (boilerplate.py), RULES (clean_rules.py).
Invariant: cleaning a cleaned text changes nothing.
"""

from collections.abc import Iterable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import pycld2
from pydantic import TypeAdapter, ValidationError

from megatron_jmed.corpus.boilerplate import drop_boilerplate
from megatron_jmed.corpus.clean_rules import RULES, CleanSettings, Look
from megatron_jmed.corpus.document import UNKNOWN, Document
from megatron_jmed.corpus.language import LANGUAGES, find_language
from megatron_jmed.corpus.manifest import Manifest
from megatron_jmed.corpus.spelling import normalise
from megatron_jmed.corpus.stage import Kept, Removed, Transform, run_stage
from megatron_jmed.errors import CorpusError

STAGE = "clean"


def clean_settings(rules: Iterable[str] = (), changes: Iterable[str] = ()) -> CleanSettings:
    """Settings from words such as 'min_letters=30'; CorpusError for an unknown name or a value of another type."""
    chosen: dict[str, Any] = {"rules": tuple(rules)}
    names = [field.name for field in fields(CleanSettings) if field.name != "rules"]
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in names:
            raise CorpusError(f"--set {change!r} is not NAME=VALUE with a name out of {', '.join(names)}")
        chosen[name] = tuple(value.split(",")) if name == "languages" else value
    try:
        return TypeAdapter(CleanSettings).validate_python(chosen)
    except ValidationError as error:
        problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}, got {problem['input']!r}" for problem in error.errors())
        raise CorpusError(f"--set: {problems}") from None


def clean(source: Path, target: Path, settings: CleanSettings, **words: Any) -> Manifest:
    """Clean every document of a source into TARGET; `words` are those of run_stage (workers, shard, max_bad ...)."""
    choices = {**asdict(settings), "rules": list(settings.rules or RULES), "languages": list(settings.languages)}
    choices["pycld2"] = pycld2.__version__
    return run_stage(STAGE, Path(source), Path(target), choices, partial(make_clean, settings), **words)


def make_clean(settings: CleanSettings) -> Transform:
    """The transform of the stage: spelling, boilerplate, language, rules."""
    return partial(clean_document, settings=settings)


def clean_document(document: Document, settings: CleanSettings) -> Kept | Removed:
    """Return the cleaned document, or the document as it came with the first rule that it breaks."""
    text, counts = normalise(document.text)
    text, num_lines = drop_boilerplate(text)
    if num_lines:
        counts["boilerplate_lines"] = num_lines
    lang, meta = document.lang, document.meta
    if (found := find_language(text)) and found != lang:
        counts[f"lang_{_word(lang)}_to_{found}"] = 1
        lang, meta = found, meta if lang == UNKNOWN else {**meta, "declared_lang": lang}
    look = Look(text, lang, settings)
    for rule in settings.rules or RULES:
        if detail := RULES[rule](look):
            return Removed(document, rule, detail)
    if text is document.text and lang == document.lang:
        return Kept(document, counts)
    return Kept(Document(document.id, text, document.source, lang, meta), counts)


def _word(lang: str) -> str:
    return lang if lang in (*LANGUAGES, UNKNOWN) else "another"
