"""What kind of texts did a run read, and how much of an exam's vocabulary has it met?

In: the token sets of a run's sources; datasheets of them (tools/describe_corpus.py), or the SentencePiece model that they were made
with, and exams. Out: features by name. Invariant: each token set is measured once, whatever the number of runs.

| feature | of a source | of a run: mean over its sources, weighted by |
|---|---|---|
| script S | share of its characters that are kanji, hiragana, katakana, latin, digits | characters read |
| characters a token | exact | tokens read |
| lexical diversity | MATTR of a sample (corpus/measures.py) | tokens read |
| sentence characters | mean length of a sentence in a sample | tokens read |
| terms per 1000 characters | occurrences of listed medical terms in a sample | characters read |

`exam NAME words met` and `exam NAME pairs met`: the share of the exam's distinct tokens, and of its distinct pairs of neighbouring
tokens (questions and choices), that the run is expected to have read at least once. Of a token that occurs c_i times in the
training part of source i, of which the part f_i = min(epochs, 1) was read, none was read with the probability
prod_i (1 - f_i)^c_i, if occurrences are spread evenly: how often a source was read beyond once makes no difference here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_jmed.corpus.indexed import read_whole_documents
from megatron_jmed.corpus.manifest import sha256_file
from megatron_jmed.corpus.piece_table import load_pieces
from megatron_jmed.corpus.profile import ProfileSettings, profile_token_set
from megatron_jmed.corpus.provenance import attribute
from megatron_jmed.corpus.terms import Terms, load_terms
from megatron_jmed.corpus.token_set import NAME, TokenSet, load_token_set
from megatron_jmed.errors import CorpusError
from megatron_jmed.evaluate.exam import load_exam
from megatron_jmed.evaluate.mixture_runs import ReadSource

CHUNK_TOKENS = 2**22
SCRIPTS = ("kanji", "hiragana", "katakana", "latin", "digits")  # of corpus/piece_table.py's; the rest follows from these


@dataclass(frozen=True)
class _Texts:
    """Measures of a token set; None where its sample is too small, or no list of terms was given."""

    scripts: Mapping[str, float]
    characters_a_token: float
    lexical_diversity: float | None
    sentence_characters: float | None
    terms: float | None


class SourceTexts:
    """Measures token sets for `mixture_runs.read_study`; without datasheets and tokenizer it knows nothing of them."""

    def __init__(
        self, datasheets: Sequence[Path] = (), tokenizer: Path | None = None, terms: Path | None = None, exams: Sequence[Path] = ()
    ) -> None:
        if exams and not tokenizer:
            raise CorpusError("overlap with an exam is counted in tokens; give the token sets' --tokenizer")
        self._sheets = _sets_by_sum(datasheets)
        self._tokenizer, self._terms = tokenizer, load_terms(terms) if terms else Terms()
        self._tokenizer_sum = sha256_file(tokenizer) if tokenizer else ""
        self._exams = {path.stem: _exam_tokens(path, tokenizer) for path in exams}
        self._texts: dict[str, _Texts] = {}
        self._counts: dict[tuple[str, float], dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def __call__(self, sources: Sequence[ReadSource], valid_ratio: float) -> dict[str, float | None]:
        """The features of a run that read so much of each of its sources."""
        if not self._sheets and not self._tokenizer:
            return {}
        read = [source for source in sources if source.tokens]
        features = _mixed([(source, self._texts_of(source.path)) for source in read])
        for exam in self._exams:
            counts = [self._counts_of(source.path, valid_ratio)[exam] for source in read]
            for which, what in enumerate(("words", "pairs")):
                parts = zip(read, counts, strict=True)
                missed = np.prod([(1 - min(1.0, source.epochs)) ** of_source[which] for source, of_source in parts], axis=0)
                features[f"exam {exam} {what} met"] = float(1 - missed.mean())
        return features

    def _texts_of(self, path: str) -> _Texts:
        if path not in self._texts:
            token_set = load_token_set(path)
            key = _sum_of(file.model_dump() for file in token_set.manifest.files)
            if key in self._sheets:
                groups = self._sheets[key]
            elif self._tokenizer:
                groups = self._profile(Path(path), token_set)
            else:
                raise CorpusError(
                    f"{path} is in no datasheet given; describe it (tools/describe_corpus.py), or give its --tokenizer"
                )
            self._texts[path] = _of_groups(groups)
        return self._texts[path]

    def _profile(self, path: Path, token_set: TokenSet) -> list[dict[str, Any]]:
        self._check_tokenizer(path, token_set)
        found = attribute(path, token_set.manifest)
        return profile_token_set(
            path / f"{NAME}.bin", self._tokenizer, found.groups, [lang for _, lang in found.names], self._terms, ProfileSettings()
        )

    def _check_tokenizer(self, path: Path, token_set: TokenSet) -> None:
        if token_set.tokenizer_sha256 != self._tokenizer_sum:
            raise CorpusError(
                f"{path} was not made with {self._tokenizer} but with {token_set.tokenizer.file} "
                f"({token_set.tokenizer_sha256[:12]}); give that"
            )

    def _counts_of(self, path: str, valid_ratio: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each exam how often its tokens and pairs occur in the training part of a token set."""
        if (path, valid_ratio) not in self._counts:
            self._check_tokenizer(Path(path), load_token_set(path))
            self._counts[path, valid_ratio] = _occurrences(Path(path), valid_ratio, self._exams)
        return self._counts[path, valid_ratio]


# --- measures of texts ---------------------------------------------------------------------------------------------


def _sum_of(files: Any) -> str:
    return next(file["sha256"] for file in files if file["path"] == f"{NAME}.bin")


def _sets_by_sum(datasheets: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The groups of each token set described, by the SHA-256 of its tokens: a set may have moved."""
    sets = {}
    for path in datasheets:
        file = path / "datasheet.json" if path.is_dir() else path
        try:
            sheet = json.loads(file.read_text(encoding="utf-8"))
            sets |= {_sum_of(one["files"]): one["groups"] for one in sheet["sets"]}
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise CorpusError(f"{file}: no datasheet ({error!r}); give what tools/describe_corpus.py wrote") from None
    return sets


def _of_groups(groups: Sequence[Mapping[str, Any]]) -> _Texts:
    """One token set from its groups (source and language), weighted by their tokens."""

    def mean(value_of: Any) -> float | None:
        pairs = [(group["tokens"], value) for group in groups if (value := value_of(group)) is not None]
        return sum(n * value for n, value in pairs) / sum(n for n, _ in pairs) if pairs else None

    characters = sum(group["characters"] for group in groups)
    tokens = sum(group["tokens"] - group["special_tokens"] for group in groups)
    listed = any(group["sample"]["terms"]["listed"] for group in groups)
    return _Texts(
        scripts={script: sum(group["scripts"][script] for group in groups) / characters for script in SCRIPTS},
        characters_a_token=characters / tokens,
        lexical_diversity=mean(lambda group: group["sample"]["lexical"]["mattr"]),
        sentence_characters=mean(lambda group: group["sample"]["sentences"]["characters"].get("mean")),
        terms=mean(lambda group: group["sample"]["terms"]["per_1000_characters"]) if listed else None,
    )


def _mixed(texts: Sequence[tuple[ReadSource, _Texts]]) -> dict[str, float | None]:
    def mean(value_of: Any, by_characters: bool = False) -> float | None:
        rows = [(source.tokens * (of.characters_a_token if by_characters else 1), value_of(of)) for source, of in texts]
        if any(value is None for _, value in rows):
            return None
        return sum(weight * value for weight, value in rows) / sum(weight for weight, _ in rows)

    features = {f"script {script}": mean(lambda of, script=script: of.scripts[script], True) for script in SCRIPTS}
    return (
        features
        | {
            "characters a token": mean(lambda of: of.characters_a_token),
            "lexical diversity": mean(lambda of: of.lexical_diversity),
            "sentence characters": mean(lambda of: of.sentence_characters),
        }
        | ({"terms per 1000 characters": mean(lambda of: of.terms, True)} if any(of.terms is not None for _, of in texts) else {})
    )


# --- the words of an exam ------------------------------------------------------------------------------------------


def _exam_tokens(path: Path, tokenizer: Path) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids of an exam's questions and choices, and distinct pairs (first id * pieces + second id), in order."""
    table = load_pieces(tokenizer)
    texts = [text for question in load_exam(path).questions for text in (question.text, *question.choices)]
    coded = [np.array(ids, dtype=np.int64) for ids in table.processor.encode(texts) if ids]
    pairs = [ids[:-1] * table.size + ids[1:] for ids in coded]
    return np.unique(np.concatenate(coded)), np.unique(np.concatenate(pairs))


def _occurrences(
    path: Path, valid_ratio: float, exams: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    index = read_whole_documents(path / f"{NAME}.idx")
    size = load_token_set(path).vocab_size
    num_train = round((1 - valid_ratio) * len(index.lengths))  # as the training splits: the last documents are kept out
    num_tokens = int(index.lengths[:num_train].sum(dtype=np.int64))
    tokens = np.memmap(path / f"{NAME}.bin", dtype=index.dtype, mode="r")
    found = {exam: tuple(np.zeros(len(keys), dtype=np.int64) for keys in both) for exam, both in exams.items()}
    for start in range(0, num_tokens, CHUNK_TOKENS):
        ids = np.array(tokens[start : min(num_tokens, start + CHUNK_TOKENS + 1)], dtype=np.int64)  # one more, for the last pair
        both = (ids[:CHUNK_TOKENS], ids[:-1] * size + ids[1:])
        for exam, keys in exams.items():
            for which in (0, 1):
                found[exam][which][:] += _count(keys[which], both[which])
    return found


def _count(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How often each of the sorted `keys` is among the values."""
    places = np.searchsorted(keys, values)
    places[places == len(keys)] = 0
    return np.bincount(places[keys[places] == values], minlength=len(keys))
