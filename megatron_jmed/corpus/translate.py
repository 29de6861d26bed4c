"""What does a text say in another language, by a model's word, and is that word fit to train on?

In: a source of documents in one language and a backend that translates (translate_server.py, evaluate/hf_translator.py).
Out: a stage folder (stage.py) of documents with the same id and source, the target's `lang`, and the fields
`machine_translated` and `translated_from`; its manifest, and that of every stage after it, says origin machine_translated.
What a rule of translate_quality.py finds unfit is filed, as it came, under the rule's name, with the numbers and, in the field
`translation`, what the model wrote; text in another language than the source's under `not_source_language`.
Answers are kept in TARGET/.cache (translate_cache.py) by the hash of model, prompt, settings and text, for good: a rerun, also
with other bounds or after a kill, asks only for what was never answered. Shards of one target share it.
Invariant: the output follows from the source, the settings and the answers; the server's address and key stand nowhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pycld2
from pydantic import JsonValue

from megatron_jmed.corpus.document import UNKNOWN, Document
from megatron_jmed.corpus.language import LANGUAGES, find_language
from megatron_jmed.corpus.manifest import CACHE_NAME, Manifest, Translation
from megatron_jmed.corpus.part_folders import key_hash
from megatron_jmed.corpus.sentences import RULES_VERSION
from megatron_jmed.corpus.stage import Kept, Removed, run_stage
from megatron_jmed.corpus.translate_cache import AnswerCache
from megatron_jmed.corpus.translate_pieces import Piece, cut, join
from megatron_jmed.corpus.translate_quality import Answer, Bounds, default_length_ratio, find_problem
from megatron_jmed.errors import CorpusError

STAGE = "translate"
# {from} and {to} become the languages' names, {text} the piece.
DEFAULT_PROMPT = """\
Translate the following text from {from} into {to}. It is part of a longer text about medicine: use the terms that professionals \
use, and keep numbers, units, line breaks and markup as they are. Leave nothing out, add nothing, and write only the translation.

{text}"""
NAMES = {code: name.replace("_", " ").title() for name, code in reversed(pycld2.LANGUAGES)}


class Backend(Protocol):
    """Something that translates."""

    def translate(self, prompts: Sequence[str], keep: Callable[[int, Answer], None]) -> None:
        """Call keep(number of the prompt, answer) for each, in any order, from any thread, as soon as the answer is there."""


@dataclass(frozen=True)
class TranslateSettings:
    """How to translate. Everything but the bounds decides an answer; `decoding` are the backend's own settings."""

    from_lang: str
    to_lang: str
    model: str
    prompt: str | None = DEFAULT_PROMPT  # None: the model takes the plain text
    decoding: dict[str, JsonValue] = field(default_factory=dict)
    max_piece_characters: int = 2000
    length_ratio: tuple[float, float] | None = None  # None: that of the pair of languages
    max_copied_share: float = 0.3
    max_bad_share: float = 0.2

    def __post_init__(self) -> None:
        problems = [f"--{what} {lang}: no language of that code, such as ja or en"
                    for what, lang in (("from", self.from_lang), ("to", self.to_lang)) if lang not in NAMES]
        if self.from_lang == self.to_lang:
            problems.append(f"--from and --to are both {self.from_lang}")
        if self.prompt is not None and self.prompt.count("{text}") != 1:
            problems.append(f"the prompt holds {{text}} {self.prompt.count('{text}')} times; it must stand there once")
        if self.max_piece_characters < 100:
            problems.append(f"--max-piece-characters {self.max_piece_characters} is too small; at least 100 are needed")
        if not 0 <= self.bounds.length_ratio[0] < self.bounds.length_ratio[1]:
            problems.append(f"--length-ratio {self.length_ratio}: the first must be smaller than the second, none negative")
        for name in ("max_copied_share", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"--{name.replace('_', '-')} {getattr(self, name)} is not a share between 0 and 1")
        if problems:
            raise CorpusError("; ".join(problems))

    @property
    def bounds(self) -> Bounds:
        ratio = self.length_ratio or default_length_ratio(self.from_lang, self.to_lang)
        return Bounds(self.from_lang, self.to_lang, ratio, self.max_copied_share, self.max_bad_share)

    def identity(self) -> dict[str, JsonValue]:
        """All that decides an answer, but the text."""
        return {"model": self.model, "prompt": self.prompt, "decoding": self.decoding,
                "from_lang": self.from_lang, "to_lang": self.to_lang}

    def prompt_for(self, text: str) -> str:
        if self.prompt is None:
            return text
        before, _, after = self.prompt.partition("{text}")
        before, after = (part.replace("{from}", NAMES[self.from_lang]).replace("{to}", NAMES[self.to_lang])
                         for part in (before, after))
        return before + text + after


def translate(
    source: Path, target: Path, settings: TranslateSettings, make_backend: Callable[[], Backend], **words: Any
) -> Manifest:
    """Translate every document of a source into TARGET; `words` are those of run_stage (workers, shard, max_bad ...).

    `make_backend` must be picklable; it is called once in each worker, and only if something is to be done.
    """
    bounds = asdict(settings.bounds)
    choices = {**settings.identity(), "max_piece_characters": settings.max_piece_characters, **bounds,
               "length_ratio": list(bounds["length_ratio"]), "sentence_rules": RULES_VERSION, "pycld2": pycld2.__version__}
    make = partial(_make_translator, settings, make_backend, Path(target) / CACHE_NAME)
    translation = Translation(from_lang=settings.from_lang, to_lang=settings.to_lang, model=settings.model)
    return run_stage(STAGE, Path(source), Path(target), choices, make, translation=translation, **words)


def _make_translator(settings: TranslateSettings, make_backend: Callable[[], Backend], cache: Path) -> "Translator":
    return Translator(settings, make_backend(), AnswerCache(cache))


class Translator:
    """The transform of the stage; it is given many documents at once, so that their pieces are asked for together."""

    def __init__(self, settings: TranslateSettings, backend: Backend, cache: AnswerCache) -> None:
        self.settings, self.backend, self.cache = settings, backend, cache

    def __call__(self, document: Document) -> Kept | Removed:
        return self.many([document])[0]

    def many(self, documents: list[Document]) -> list[Kept | Removed]:
        """What becomes of each document, in order."""
        pieces = [self._pieces(document) for document in documents]
        answers = self._answers([piece.text for of_document in pieces for piece in of_document or ()])
        return [self._result(*both, answers) for both in zip(documents, pieces, strict=True)]

    def _pieces(self, document: Document) -> list[Piece] | None:
        """The pieces to translate; None if the document is in another language."""
        settings = self.settings
        lang = document.lang
        if lang == UNKNOWN:
            lang = find_language(document.text, (settings.from_lang, *LANGUAGES)) or settings.from_lang
        return cut(document.text, lang, settings.max_piece_characters) if lang == settings.from_lang else None

    def _answers(self, texts: list[str]) -> dict[str, Answer]:
        """The answer to each text: from the cache, or asked for, once for each different text."""
        known: dict[str, Answer] = {}
        keys = {text: key_hash([self.settings.identity(), text]) for text in dict.fromkeys(texts)}
        for text, key in keys.items():
            if cached := self.cache.get(key):
                known[text] = Answer(**cached)
        missing = [text for text in keys if text not in known]

        def keep(number: int, answer: Answer) -> None:
            known[missing[number]] = answer
            if answer.finish != "refused":  # another server, or another day, may not refuse
                self.cache.put(keys[missing[number]], asdict(answer))

        self.backend.translate([self.settings.prompt_for(text) for text in missing], keep)
        return known

    def _result(self, document: Document, pieces: list[Piece] | None, answers: dict[str, Answer]) -> Kept | Removed:
        settings = self.settings
        if pieces is None:
            declared = f"declared {document.lang}" if document.lang != UNKNOWN else "found another"
            return Removed(document, "not_source_language", f"{declared}, not {settings.from_lang}")
        given = [answers[piece.text] for piece in pieces]
        text = join(pieces, [answer.text for answer in given], settings.to_lang)
        if problem := find_problem([piece.text for piece in pieces], given, text, settings.bounds):
            return Removed(replace(document, meta={**document.meta, "translation": text}), *problem)
        meta = {**document.meta, "machine_translated": True, "translated_from": settings.from_lang}
        counts = {"pieces": len(pieces), "source_characters": len(document.text)}
        return Kept(replace(document, text=text, lang=settings.to_lang, meta=meta), counts)
