"""Which ids does a text become, and how is a small tokenizer of the LLM-jp kind made?

In: texts and a SentencePiece model file. Out: one flat array of ids and the length of each text; or, from documents,
a new model file. Invariant: ids are those of sentencepiece for each text alone, whatever texts are encoded with it and
whichever engine does it.

Two engines: `native`, our C++ core for unigram models without normalisation (LLM-jp's), and `sentencepiece` for all
models. Two families of ids: sentencepiece 0.2.2 sums scores in float where 0.2.1 summed in double, so near ties are cut
in another way in about one document in a hundred. The native engine can do both, an installed sentencepiece only its
own. Engine, version and family are part of a token set's record.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import sentencepiece

from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.indexed import token_dtype
from megatron_jmed.corpus.manifest import sha256_file
from megatron_jmed.corpus.sentencepiece_model import open_sentencepiece
from megatron_jmed.errors import CorpusError
from megatron_jmed.native import VERSION, NativeUnavailable, load_unigram, sums_in_double

Engine = Literal["auto", "native", "sentencepiece"]
Family = Literal["float", "double"]
ENGINES = get_args(Engine)
FAMILIES: dict[str, str] = {"float": "sentencepiece>=0.2.2", "double": "sentencepiece<=0.2.1"}
# The ids 3 to 7 of LLM-jp v3: never found in a text, only put there by a program.
CONTROL_PIECES = ("<MASK>", "<PAD>", "<CLS>", "<SEP>", "<EOD>")
NUM_BYTE_PIECES = 256
MIN_VOCAB_SIZE = 3 + len(CONTROL_PIECES) + NUM_BYTE_PIECES + 1
# Longer lines are left out of training by sentencepiece without a word, so they are cut instead.
MAX_TRAINING_LINE_CHARACTERS = 1000


@dataclass(frozen=True)
class TokenizerInfo:
    """What identifies a tokenizer in a token set's manifest; an id is -1 where the model lacks the piece."""

    file: str
    sha256: str
    vocab_size: int  # number of pieces
    bos_id: int
    eos_id: int
    engine: str  # native, sentencepiece or huggingface
    engine_version: str
    family: str = FAMILIES["float"]  # the versions of sentencepiece that give these ids


class Encoder:
    """Encodes texts with a SentencePiece model, with `<s>` before and `</s>` after each if asked for.

    `engine` says which engine does it; with "auto", `fallback` says why it is not the native one (None if it is).
    """

    def __init__(self, path: Path, bos: bool, eos: bool, engine: Engine = "auto", family: Family = "float") -> None:
        self.processor = open_sentencepiece(path)
        self.path = path
        self.family = family
        self.dtype = token_dtype(len(self.processor))
        self.before = [self._special("<s>", "bos", self.processor.bos_id())] if bos else []
        self.after = [self._special("</s>", "eos", self.processor.eos_id())] if eos else []
        self.fallback: str | None = None
        self._native = None if engine == "sentencepiece" else self._load_native(required=engine == "native")
        self.engine: Engine = "native" if self._native else "sentencepiece"
        installed_sums = "double" if sums_in_double(sentencepiece.__version__) else "float"
        if not self._native and family != installed_sums:
            raise CorpusError(
                f"ids of {FAMILIES[family]} (--family {family}) need --engine native or such a version; "
                f"sentencepiece {sentencepiece.__version__} is installed{f', and {self.fallback}' if self.fallback else ''}"
            )

    def _load_native(self, required: bool):
        try:
            return load_unigram(self.path, self._reference, sentencepiece.__version__)
        except NativeUnavailable as error:
            if required:
                raise CorpusError(f"--engine native: {error}; use --engine sentencepiece") from None
            self.fallback = str(error)
            return None

    def _special(self, piece: str, setting: str, found: int) -> int:
        if found < 0:
            raise CorpusError(f"tokenizer {self.path} has no {piece} piece; use one that has, or --no-{setting}")
        return found

    def info(self) -> TokenizerInfo:
        """Describe the tokenizer (reads the file once more, to hash it)."""
        return TokenizerInfo(
            file=self.path.name,
            sha256=sha256_file(self.path),
            vocab_size=len(self.processor),
            bos_id=self.processor.bos_id(),
            eos_id=self.processor.eos_id(),
            engine=self.engine,
            engine_version=VERSION if self._native else sentencepiece.__version__,
            family=FAMILIES[self.family],
        )

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts and lay them end to end, special pieces added: (ids, number of ids of each text).

        A text that gives no id (an empty one, or all erased by the model's normaliser) gets no special piece either.
        """
        if self._native:
            wide, double = self.dtype.itemsize > 2, self.family == "double"
            tokens, lengths, _ = self._native.encode(
                texts, before=self.before, after=self.after, uint16=not wide, double_sums=double
            )
            return tokens, lengths
        return join_ids(self._reference(texts), self.dtype, self.before, self.after)

    def encode_lines(self, block: bytes, text_field: str) -> tuple[np.ndarray, np.ndarray, list[tuple]] | None:
        """Encode the documents of whole JSON lines without making Python objects of them, if all of them are plain ones.

        Returns (ids, number of ids of each, (source, lang, documents, characters, ids) of each group), sources and
        languages that are not said being empty; None if a line needs a closer look, or if this is not the native engine.
        """
        if not self._native or text_field in ("id", "source", "lang"):
            return None
        wide, double = self.dtype.itemsize > 2, self.family == "double"
        return self._native.encode_lines(
            block, text_field, before=self.before, after=self.after, uint16=not wide, double_sums=double
        )

    def _reference(self, texts: list[str]) -> list[np.ndarray]:
        return self.processor.encode(texts, out_type="numpy", num_threads=1)


def join_ids(
    pieces: list[np.ndarray], dtype: np.dtype, before: list[int], after: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lay the ids of texts end to end, each with what stands before and after it (nothing around an empty one)."""
    added = len(before) + len(after)
    lengths = np.array([len(piece) + added if len(piece) else 0 for piece in pieces], dtype="<i4")
    tokens = np.empty(int(lengths.sum()), dtype=dtype)
    ends = np.cumsum(lengths, dtype=np.int64)[lengths > 0]
    starts = ends - lengths[lengths > 0]
    body = np.ones(len(tokens), dtype=bool)
    for id_, positions in [(i, starts) for i in before] + [(i, ends - 1) for i in after]:
        tokens[positions] = id_
        body[positions] = False
    tokens[body] = np.concatenate([np.empty(0, np.int32), *pieces])
    return tokens, lengths


def build_encoder(path: Path, bos: bool, eos: bool, engine: Engine = "auto", family: Family = "float"):
    """The encoder of a SentencePiece model or of a Hugging Face tokenizer.json; CorpusError if it cannot be had."""
    # Here, because that file needs this one's names.
    from megatron_jmed.corpus.hf_tokenizer import HuggingFaceEncoder, is_hugging_face

    if not is_hugging_face(path):
        return Encoder(path, bos, eos, engine, family)
    if engine != "auto" or family != "float":
        raise CorpusError(f"--engine and --family are for SentencePiece models; {path} is a Hugging Face tokenizer")
    return HuggingFaceEncoder(path, bos, eos)


def train_tokenizer(
    source: str | Path | Sequence[str | Path], model_path: str | Path, vocab_size: int, text_field: str = "text"
) -> None:
    """Train a unigram model with byte fallback whose special ids are LLM-jp's, and write it to `model_path`.

    The same documents give the same file. All text is held in memory, so give a sample of a large corpus. CorpusError
    if a record is bad, if the texts cannot carry `vocab_size` pieces, or if another model is already at `model_path`.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise CorpusError(f"--vocab-size {vocab_size} is too small: special and byte pieces alone need {MIN_VOCAB_SIZE}")
    sources = [source] if isinstance(source, str | Path) else list(source)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(sources, text_field),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(CONTROL_PIECES),
            max_sentence_length=8 * MAX_TRAINING_LINE_CHARACTERS,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise CorpusError(f"no tokenizer of {vocab_size} pieces can be trained from {sources[0]}: {error}") from None
    _write_model(Path(model_path), model.getvalue())


def _training_lines(sources: list[str | Path], text_field: str) -> Iterator[str]:
    """The lines of all documents, long ones cut."""
    for source in sources:
        for document in read_documents(source, text_field):
            for line in document.text.splitlines():
                for start in range(0, len(line), MAX_TRAINING_LINE_CHARACTERS):
                    yield line[start : start + MAX_TRAINING_LINE_CHARACTERS]


def _write_model(path: Path, model: bytes) -> None:
    """Write a model atomically; CorpusError rather than replace another one."""
    if path.exists():
        if path.read_bytes() == model:
            return
        raise CorpusError(f"{path} already holds another model; delete it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(model)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
