"""Conversations, tokenised once: what instruction tuning reads.

In: chat JSON lines (chat.py), a tokenizer and a chat template. Out: TARGET/tokens.bin and tokens.idx, a conversation a document,
TARGET/tokens.weights (little-endian f2, one for each token of tokens.bin: how much it counts in the loss when it is the one to be
predicted), removed/REASON.jsonl and manifest.json. What is longer than `max_tokens` is treated by a named policy:

    drop       the whole conversation is removed (and kept in removed/too_long.jsonl)
    turns      its last turns are left out, an answer with its question, until it fits; removed if even the first does not
    truncate   its last tokens are cut off; removed if nothing to learn is left

Invariant: conversations keep the order of the source, the output is the same byte for byte for any number of workers, and a
template or tokenizer that would teach another text than the model is asked for is an error, not a record that is dropped. A run
that is killed begins again: such sets are small beside those of pre-training.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import orjson
from pydantic import JsonValue

from megatron_jmed.corpus.chat import BadConversation, Piece, Turn, find_template, turns_from_record
from megatron_jmed.corpus.chat_encoder import ChatEncoder, EncodedConversation
from megatron_jmed.corpus.counts import Counting
from megatron_jmed.corpus.document import UNKNOWN, BadRecord, RemovedRecords, parse_lines
from megatron_jmed.corpus.indexed import TokenWriter
from megatron_jmed.corpus.manifest import PARTIAL_NAME, GroupCounts, Manifest, OutputFile, code_version, publish
from megatron_jmed.corpus.part_folders import REMOVED, opened, output_file
from megatron_jmed.corpus.pool import each_in_order
from megatron_jmed.corpus.reader import RawBatch, Source, find_source, read_batches
from megatron_jmed.corpus.token_set import CHAT_STAGE, CONVERSATIONS, NAME, WEIGHTS_NAME
from megatron_jmed.corpus.tokenizer import build_encoder
from megatron_jmed.errors import CorpusError

OUTPUT_NAMES = (f"{NAME}.bin", f"{NAME}.idx", WEIGHTS_NAME, REMOVED)
TooLong = Literal["drop", "turns", "truncate"]
POLICIES = get_args(TooLong)
TOO_LONG = "too_long"


@dataclass(frozen=True)
class ChatSettings:
    """How to tokenise conversations. `template`: "llmjp", a Hugging Face folder, or a .jinja file with the tokenizer's marks.
    `workers` and `overwrite` do not change the tokens."""

    tokenizer: Path
    template: str = "llmjp"
    max_tokens: int = 0  # 0: no limit
    too_long: TooLong = "drop"
    max_bad: int = 0
    licence: str | None = None
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", Path(self.tokenizer))
        if self.too_long not in POLICIES:
            raise CorpusError(f"--too-long {self.too_long} is unknown; choose from {', '.join(POLICIES)}")
        if self.max_tokens < 0 or self.workers < 1 or self.max_bad < 0:
            raise CorpusError(f"--max-tokens {self.max_tokens}, --max-bad {self.max_bad}, --workers {self.workers}: needed are 0 "
                              "or more tokens and bad records, and at least one worker")


def tokenize_chat(source: str | Path, target: str | Path, settings: ChatSettings) -> Manifest:
    """Tokenise every conversation of a source into TARGET; a target that is already finished is left as it is."""
    target, found = Path(target), find_source(source)
    encoder = build_encoder(settings.tokenizer, bos=False, eos=False)
    info, template = encoder.info(), find_template(settings.template)
    ChatEncoder(encoder, template)  # refuses a template of another tokenizer before anything is read
    licence = settings.licence or found.licence()
    choices: dict[str, JsonValue] = {
        "tokenizer_sha256": info.sha256,
        "template": template.name,
        "template_sha256": hashlib.sha256(template.source.encode()).hexdigest(),
        "max_tokens": settings.max_tokens,
        "too_long": settings.too_long,
        "max_bad": settings.max_bad,
        "licence": licence,
    }
    inputs = found.inputs()
    with opened(target, CHAT_STAGE, choices, inputs, OUTPUT_NAMES, settings.overwrite) as finished:
        if finished:
            return finished
        writer = _Writer(target / PARTIAL_NAME, encoder.dtype, settings.max_bad)
        try:
            for batch in _encoded_batches(found, settings):
                writer.add(batch)
        finally:
            writer.close()
        if not writer.counting.documents:
            dropped = dict(writer.removed.counts) or "none, it is empty"
            raise CorpusError(f"{source} holds no usable conversation (dropped: {dropped})")
        files, removed_files = writer.finish()
        details: dict[str, JsonValue] = {"tokenizer": asdict(info), "dtype": encoder.dtype.name, "sequences": CONVERSATIONS,
                                         **{name: int(writer.numbers[name]) for name in NUMBERS}}
        manifest = Manifest(stage=CHAT_STAGE, settings=choices, code_version=code_version(), source=str(source), inputs=inputs,
                            ignored_inputs=found.ignored, files=files, removed_files=removed_files,
                            counts=writer.counting.result(), details=details, licence=licence,
                            origin=found.origin())
        publish(target, manifest, OUTPUT_NAMES)
    return manifest


# what the manifest says beside the usual counts; shortened: conversations that the policy cut, and kept
NUMBERS = ("learnt_tokens", "straddling_tokens", "turns", "answers", "too_long", "shortened", "longest_tokens")


@dataclass
class _EncodedBatch:
    """What became of the records of one raw batch, in order."""

    kept: list[EncodedConversation] = field(default_factory=list)
    groups: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # conversations, characters, tokens
    numbers: Counter[str] = field(default_factory=Counter)
    removed: list[tuple[BadRecord, bool]] = field(default_factory=list)  # True: by the policy for long ones, not a bad record

    def keep(self, record: dict, turns: tuple[Turn, ...], pieces: list[Piece], encoded: EncodedConversation) -> None:
        self.kept.append(encoded)
        key = tuple(name if isinstance(name := record.get(word), str) else UNKNOWN for word in ("source", "lang"))
        group = self.groups.setdefault(key, [0, 0, 0])
        for place, number in enumerate((1, sum(len(piece.text) for piece in pieces), len(encoded.ids))):
            group[place] += number
        self.numbers.update(learnt_tokens=int(np.count_nonzero(encoded.weights)), straddling_tokens=encoded.num_straddling,
                            turns=len(turns), answers=sum(piece.weight > 0 for piece in pieces))
        self.numbers["longest_tokens"] = max(self.numbers["longest_tokens"], len(encoded.ids))


def _encoded_batches(source: Source, settings: ChatSettings) -> Iterator[_EncodedBatch]:
    yield from each_in_order(settings.workers, lambda: f"; use fewer --workers than {settings.workers} and run again",
                             _encode, read_batches(source), settings)


@functools.cache
def _chat_encoder(tokenizer: Path, template: str) -> ChatEncoder:
    """One a process."""
    return ChatEncoder(build_encoder(tokenizer, bos=False, eos=False), find_template(template))


def _encode(batch: RawBatch, settings: ChatSettings) -> _EncodedBatch:
    if batch.kind != "jsonl":
        raise CorpusError(f"{batch.file}: conversations are read from JSON lines (.jsonl, .jsonl.gz, .jsonl.zst)")
    encoder, done, waiting = _chat_encoder(settings.tokenizer, settings.template), _EncodedBatch(), []
    for offset, (record, raw) in enumerate(parse_lines(batch.payload, "")):
        line = batch.first_line + offset
        try:
            if isinstance(record, str):
                raise BadConversation(record)
            turns = turns_from_record(record)
            if encoder.spells_a_mark(turns):
                raise BadConversation("spells_a_mark")
            waiting.append((line, raw, record, turns, encoder.template.pieces(turns)))
        except BadConversation as problem:
            done.removed.append((BadRecord(batch.file, line, _reason(str(problem)), raw()), False))
    encoded = encoder.encode([pieces for *_, pieces in waiting])
    for (line, raw, record, turns, pieces), whole in zip(waiting, encoded, strict=True):
        kept = _shortened(encoder, turns, pieces, whole, settings)
        if kept is None or not kept[2].weights[1:].any():
            reason = TOO_LONG if _is_too_long(whole, settings) else "no_token_to_learn"
            done.removed.append((BadRecord(batch.file, line, reason, raw()), reason == TOO_LONG))
        else:
            done.keep(record, *kept)
            done.numbers["shortened"] += _is_too_long(whole, settings)
        done.numbers["too_long"] += _is_too_long(whole, settings)
    return done


def _is_too_long(encoded: EncodedConversation, settings: ChatSettings) -> bool:
    return 0 < settings.max_tokens < len(encoded.ids)


def _shortened(encoder: ChatEncoder, turns: tuple[Turn, ...], pieces: list[Piece], whole: EncodedConversation,
               settings: ChatSettings) -> tuple[tuple[Turn, ...], list[Piece], EncodedConversation] | None:
    """The conversation as far as the policy keeps it: its turns, pieces and tokens; None if it keeps nothing."""
    if not _is_too_long(whole, settings):
        return turns, pieces, whole
    if settings.too_long == "truncate":
        limit = settings.max_tokens
        return turns, pieces, EncodedConversation(whole.ids[:limit], whole.weights[:limit], whole.num_straddling)
    while settings.too_long == "turns" and len(turns) > 2:
        turns = turns[: max(number for number, turn in enumerate(turns[:-1]) if turn.role == "assistant" or number == 0) + 1]
        if len(turns) < 2 or turns[-1].role != "assistant":
            return None
        pieces = encoder.template.pieces(turns)
        (whole,) = encoder.encode([pieces])
        if not _is_too_long(whole, settings):
            return turns, pieces, whole
    return None


def _reason(problem: str) -> str:
    """The name of a file of removed records: a reason of document.py, or one for all that is no conversation."""
    return problem if problem.isidentifier() else "not_a_conversation"


class _Writer:
    """Writes tokens, weights and removed records into a folder, and counts them."""

    def __init__(self, folder: Path, dtype: np.dtype, max_bad: int):
        self.folder, self.counting, self.numbers = folder, Counting(), Counter()
        self._tokens = TokenWriter(folder, NAME, dtype)
        self._weights = open(folder / WEIGHTS_NAME, "wb")
        self.removed = RemovedRecords(folder / REMOVED, None)
        self._max_bad, self._num_bad = max_bad, 0

    def add(self, batch: _EncodedBatch) -> None:
        if batch.kept:
            ids, weights = (np.concatenate([getattr(one, name) for one in batch.kept]) for name in ("ids", "weights"))
            self._tokens.add(ids, np.array([len(one.ids) for one in batch.kept], dtype="<i4"))
            self._weights.write(weights.tobytes())
        for (source, lang), (conversations, characters, tokens) in batch.groups.items():
            self.counting.keep_many(source, lang, GroupCounts(documents=conversations, characters=characters, tokens=tokens))
        longest = max(self.numbers["longest_tokens"], batch.numbers["longest_tokens"])
        self.numbers.update(batch.numbers)
        self.numbers["longest_tokens"] = longest
        for record, is_policy in batch.removed:
            self.removed.add(record)
            self._num_bad += not is_policy
            if self._num_bad > self._max_bad:
                raise CorpusError(f"{record.file}:{record.line}: {_why(record)}; this is one of more than {self._max_bad} bad "
                                  f"record(s), kept in {self.folder / REMOVED}; mend the source (tools/check_chat.py names them "
                                  "all) or allow more with --max-bad")

    def finish(self) -> tuple[list[OutputFile], list[OutputFile]]:
        """Describe the finished files and the removed ones."""
        removed = self.removed.close()
        self.counting.dropped.update(self.removed.counts)
        files = self._tokens.finish()
        (self.folder / f"{NAME}.lengths").unlink()
        return [*files, output_file(self.folder / WEIGHTS_NAME, WEIGHTS_NAME, self._tokens.num_documents)], removed

    def close(self) -> None:
        self._tokens.close()
        self._weights.close()


def _why(record: BadRecord) -> str:
    """What is wrong with a record, in full."""
    if record.reason != "not_a_conversation":
        return record.reason.replace("_", " ")
    try:
        turns_from_record(orjson.loads(record.raw))
    except BadConversation as problem:
        return str(problem)
    return "the chat template refuses it"
