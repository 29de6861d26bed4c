"""Which token ids does the trainer read, and from which texts and tokenizer do they come?

In: a source of documents and a tokenizer (SentencePiece or Hugging Face). Out: TARGET/tokens.bin and tokens.idx
(Megatron-Core's format), removed/REASON.jsonl for records that are no documents, and manifest.json. Three parts that
know nothing of each other: reader.py reads, `_encode` (in several threads or processes) turns a raw batch into ids,
indexed.py writes. A document is one sequence of the index, or (`split_sentences`) one for each of its sentences, `<s>`
before the first, `</s>` after the last.
While it runs, all that is in TARGET/.parts, with the place up to which it is whole (token_progress.py): a rerun goes on
there. With shard (i, n) the run takes a range of the files and writes TARGET/shard-i-of-n (token_shards.py joins them).
Invariant: documents keep the order of the source, and the output is the same, byte for byte, for any number of
workers or shards and however often the run was killed.
"""

import contextlib
import copy
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import orjson
from pydantic import JsonValue, TypeAdapter, ValidationError
from tqdm import tqdm

from megatron_jmed.corpus import token_progress
from megatron_jmed.corpus.counts import Counting
from megatron_jmed.corpus.document import UNKNOWN, BadRecord, Document, RemovedRecords, parse_batch
from megatron_jmed.corpus.indexed import TokenWriter, read_index
from megatron_jmed.corpus.manifest import (
    PARTIAL_NAME,
    Counts,
    GroupCounts,
    InputFile,
    Manifest,
    Origin,
    OutputFile,
    check_files,
    code_version,
    load_manifest,
    publish,
)
from megatron_jmed.corpus.part_folders import PARTS, REMOVED, file_hashes, key_hash, link_or_copy, opened
from megatron_jmed.corpus.pool import worker_pool
from megatron_jmed.corpus.reader import RawBatch, Source, find_source
from megatron_jmed.corpus.sentences import SENTENCE_ENGINES, SentenceEngine, SentenceSplitter, load_splitter
from megatron_jmed.corpus.shards import check_shard, file_range, of_shard, shard_folder
from megatron_jmed.corpus.token_progress import Progress, begin, load_progress, remaining_batches
from megatron_jmed.corpus.tokenizer import ENGINES, FAMILIES, Encoder, Engine, Family, TokenizerInfo, build_encoder
from megatron_jmed.errors import CorpusError

STAGE = "tokenize"
CHAT_STAGE = "tokenize_chat"  # chat_tokens.py
NAME = "tokens"
WEIGHTS_NAME = f"{NAME}.weights"  # of conversations: how much each token counts in the loss
OUTPUT_NAMES = (f"{NAME}.bin", f"{NAME}.idx", REMOVED)
ORIGINS = ("original", "machine_translated")
SENTENCES = "sentences"
CONVERSATIONS = "conversations"
# Enough that no worker waits for the reader, few enough that memory stays at some megabytes per worker.
BATCHES_PER_WORKER = 3
SECONDS_BETWEEN_LOG_LINES = 30.0


@dataclass(frozen=True)
class TokenizeSettings:
    """How to tokenise. `engine`, `workers`, `overwrite` and `progress` do not change the tokens; all else does."""

    tokenizer: Path
    text_field: str = "text"
    bos: bool = True
    eos: bool = True
    max_bad: int = 100
    licence: str | None = None  # None: what the source's manifests say
    origin: str | None = None  # of text that was translated elsewhere; None: the same
    family: Family = "float"
    engine: Engine = "auto"
    split_sentences: bool = False
    sentence_engine: SentenceEngine = "auto"
    workers: int = 1
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", Path(self.tokenizer))
        if self.workers < 1:
            raise CorpusError(f"--workers {self.workers} is too small; at least 1 is needed")
        for name, value, known in (
            ("engine", self.engine, ENGINES),
            ("family", self.family, tuple(FAMILIES)),
            ("sentence-engine", self.sentence_engine, SENTENCE_ENGINES),
            ("origin", self.origin, (None, *ORIGINS)),
        ):
            if value not in known:
                raise CorpusError(f"--{name} {value} is unknown; choose from {', '.join(filter(None, known))}")
        if self.max_bad < 0:
            raise CorpusError(f"--max-bad {self.max_bad} is negative; 0 allows no bad record")


def tokenize(
    source: str | Path, target: str | Path, settings: TokenizeSettings, shard: tuple[int, int] | None = None
) -> Manifest:
    """Tokenise every document of a source into TARGET; a target that is already finished is left as it is.

    With `shard` (i, n) only the i-th range of the files, into TARGET/shard-i-of-n; some of n may get no file.
    """
    target = Path(target)
    found = find_source(source)
    encoder = build_encoder(settings.tokenizer, settings.bos, settings.eos, settings.engine, settings.family)
    info = encoder.info()
    licence, origin = settings.licence or found.licence(), _origin(found, settings.origin)
    choices: dict[str, JsonValue] = {
        "tokenizer_sha256": info.sha256,
        "text_field": settings.text_field,
        "bos": settings.bos,
        "eos": settings.eos,
        "family": info.family,
        "max_bad": settings.max_bad,
        "licence": licence,
    }
    if settings.origin:
        choices["origin"] = settings.origin
    details: dict[str, JsonValue] = {"tokenizer": asdict(info), "dtype": encoder.dtype.name}
    if settings.split_sentences:
        splitter = load_splitter(settings.sentence_engine)
        settings = replace(settings, sentence_engine=splitter.engine)  # a worker uses this one or fails
        choices["sentences"] = splitter.record
    mine = found
    if shard:
        check_shard(target, shard, settings.overwrite)
        files = file_range(found.files, shard)
        mine, target = Source(found.root, files, found.manifests, found.ignored), shard_folder(target, shard)
        choices, details = of_shard(choices, details | {"num_files": len(files)}, shard, found)
    inputs = mine.inputs()
    with opened(target, STAGE, choices, inputs, OUTPUT_NAMES, settings.overwrite) as finished:
        if finished:
            return finished
        if encoder.fallback:
            print(f"encoding with sentencepiece, some times slower: {encoder.fallback}", file=sys.stderr)
        if found.ignored:
            first = ", ".join(found.ignored[:5])
            print(f"ignored {len(found.ignored)} file(s) of other kinds in {source}: {first}", file=sys.stderr)
        progress = _found_progress(target, _progress_key(mine, inputs, choices))
        writer, files, removed_files, counts = _write_all(mine, settings, encoder, target / PARTS, progress)
        if settings.split_sentences:
            details |= {"sequences": SENTENCES, "num_sequences": writer.num_sequences}
        if not counts.documents and not shard:
            raise CorpusError(f"{source} holds no usable document (dropped: {counts.dropped or 'none, it is empty'})")
        for file in [*files, *removed_files]:
            link_or_copy(target / PARTS / file.path, target / PARTIAL_NAME / file.path)
        manifest = Manifest(
            stage=STAGE,
            settings=choices,
            code_version=code_version(),
            source=str(source),
            inputs=inputs,
            ignored_inputs=found.ignored,
            files=files,
            removed_files=removed_files,
            counts=counts,
            details=details,
            licence=licence,
            origin=origin,
        )
        publish(target, manifest, OUTPUT_NAMES)
    return manifest


def _origin(source: Source, declared: str | None) -> Origin:
    """The one origin of a token set; CorpusError if the source has both, or is declared to be what it is not."""
    found = source.origin()
    if declared == "original" and found.kind == "machine_translated":
        raise CorpusError(f"--origin original: the manifests of {source.root} say that it is machine_translated")
    if declared:
        return Origin(kind=declared, translations=found.translations)
    if found.kind == "mixed":
        raise CorpusError(f"{source.root} holds original and machine-translated text; a token set has one origin: tokenise them "
                          f"apart, or name it by --origin {' or '.join(ORIGINS)}")
    return found


def _found_progress(target: Path, key: str) -> Progress:
    work, published = target / PARTS / f"{NAME}.bin", target / f"{NAME}.bin"
    # Killed after all was done: to go on would cut what is published.
    is_published = work.exists() and published.exists() and os.path.samefile(work, published)
    progress = None if is_published else load_progress(target / PARTS, key)
    return progress or begin(target / PARTS, key)


def _progress_key(source: Source, inputs: list[InputFile], choices: dict[str, JsonValue]) -> str:
    # What does not change the tokens is left out, so that a rerun with a larger budget goes on.
    decisive = {name: value for name, value in choices.items() if name not in ("max_bad", "licence", "origin", "shard")}
    hashes = file_hashes(source, inputs)
    names = [source.name(path) for path in source.files]
    return key_hash([STAGE, decisive, code_version(), [[name, hashes[name]] for name in names]])


def _write_all(
    source: Source, settings: TokenizeSettings, encoder: Encoder, folder: Path, progress: Progress
) -> tuple[TokenWriter, list[OutputFile], list[OutputFile], Counts]:
    """Read, encode and write what is not done yet, in order, and count it; describe the tokens and the removed records."""
    num_sequences = (progress.sequences or 0) if settings.split_sentences else None
    removed = RemovedRecords(folder / REMOVED, settings.max_bad)
    with contextlib.ExitStack() as stack:
        writer = TokenWriter(folder, NAME, encoder.dtype, progress.documents, progress.tokens, num_sequences)
        stack.callback(writer.close)
        stack.callback(removed.close)
        removed.resume(progress.removed)
        counts = _write_batches(source, settings, encoder, writer, removed, progress)
        return writer, writer.finish(), removed.close(), counts


def _write_batches(
    source: Source,
    settings: TokenizeSettings,
    encoder: Encoder,
    writer: TokenWriter,
    removed: RemovedRecords,
    progress: Progress,
) -> Counts:
    counting = Counting()
    counting.add(progress.counts)
    already, began, saved = progress.tokens, time.monotonic(), time.monotonic()
    if progress.documents:
        print(f"{progress.documents:,} documents were tokenised by an earlier run", file=sys.stderr)
    disable = not settings.progress
    interval = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_LINES
    bar = tqdm(total=source.num_bytes(), unit="B", unit_scale=True, disable=disable, mininterval=interval)
    bar.update(sum(path.stat().st_size for path in source.files[: progress.file]))
    places: deque[tuple[int, int]] = deque()
    batches = remaining_batches(source, settings.text_field, progress, places)
    # closing() ends the workers when this loop stops early, and not whenever the generator is collected.
    with bar, contextlib.closing(_encoded_in_order(batches, settings, encoder)) as encoded_batches:
        for batch in encoded_batches:
            writer.add(batch.tokens, batch.lengths, batch.num_sequences_of)
            for bad in batch.bad:
                removed.add(bad)
            for (name, lang), counted in batch.groups.items():
                counting.keep_many(name, lang, counted)
            file, num_batches = places.popleft()
            if time.monotonic() - saved > token_progress.SECONDS_BETWEEN_SAVES:
                writer.sync()
                Progress(
                    key=progress.key,
                    file=file,
                    batches=num_batches,
                    documents=writer.num_documents,
                    tokens=writer.num_tokens,
                    sequences=writer.num_sequences,
                    removed=removed.sync(),
                    counts=counting.result(),
                ).save(writer.folder)
                saved = time.monotonic()
            speed = (writer.num_tokens - already) / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(
                f"{writer.num_documents:,} documents, {writer.num_tokens:,} tokens, {speed:,.0f} tokens/s", refresh=False
            )
            bar.update(batch.input_bytes)
    counting.dropped.update(removed.counts)
    counts = counting.result()
    assert (counts.documents, counts.tokens) == (writer.num_documents, writer.num_tokens)
    return counts


# ---- encoding, in this process or in several


@dataclass(frozen=True)
class _EncodedBatch:
    tokens: np.ndarray
    lengths: np.ndarray  # of each sequence
    num_sequences_of: np.ndarray | None  # each document; None: one
    groups: dict[tuple[str, str], GroupCounts]  # by (source, lang)
    bad: list[BadRecord]
    input_bytes: int


def _encode(batch: RawBatch, settings: TokenizeSettings, encoder: Encoder) -> _EncodedBatch:
    """Parse one raw batch and encode its documents; a document that gives no token is a bad record."""
    is_plain = batch.kind == "jsonl" and not settings.split_sentences
    if is_plain and (encoded := encoder.encode_lines(batch.payload, settings.text_field)):
        tokens, lengths, counted = encoded
        groups = {
            (source or UNKNOWN, lang or UNKNOWN): GroupCounts(documents=num, characters=characters, tokens=num_tokens)
            for source, lang, num, characters, num_tokens in counted
        }
        if len(groups) == len(counted):  # else a source is called "unknown" and another not at all
            return _EncodedBatch(tokens, lengths, None, groups, [], batch.input_bytes)
    records = list(parse_batch(batch, settings.text_field))
    documents = [record for record in records if isinstance(record, Document)]
    num_sequences_of = None
    if settings.split_sentences:
        tokens, lengths, num_sequences_of, num_ids_of = _encode_sentences(documents, settings, encoder)
    else:
        tokens, num_ids_of = encoder.encode([document.text for document in documents])
        lengths = num_ids_of[num_ids_of > 0]
    bad, groups, num_ids = [], {}, iter(num_ids_of.tolist())
    for offset, record in enumerate(records):
        if isinstance(record, BadRecord):
            bad.append(record)
        elif num_tokens := next(num_ids):
            group = groups.setdefault((record.source, record.lang), [0, 0, 0])
            group[0] += 1
            group[1] += len(record.text)
            group[2] += num_tokens
        else:
            bad.append(BadRecord(batch.file, batch.first_line + offset, "no_tokens", orjson.dumps(asdict(record))))
    counts = {key: GroupCounts(documents=d, characters=c, tokens=t) for key, (d, c, t) in groups.items()}
    return _EncodedBatch(tokens, lengths, num_sequences_of, counts, bad, batch.input_bytes)


def _encode_sentences(
    documents: list[Document], settings: TokenizeSettings, encoder: Encoder
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encode each sentence for itself: (ids, ids of each sequence, sequences of each document that has one, ids of each).

    A sentence that gives no id is no sequence; special pieces stand before and after documents, not sentences.
    """
    splitter = _splitter(settings.sentence_engine)
    sentences_of = [splitter.split(document.text, document.lang) for document in documents]
    alone = copy.copy(encoder)
    alone.before = alone.after = []
    tokens, lengths = alone.encode([sentence for sentences in sentences_of for sentence in sentences])
    document_of = np.repeat(np.arange(len(documents)), [len(sentences) for sentences in sentences_of])[lengths > 0]
    lengths = lengths[lengths > 0]
    num_sequences = np.bincount(document_of, minlength=len(documents))
    with_any = num_sequences[num_sequences > 0]
    last = np.cumsum(with_any) - 1
    first, ends = last - with_any + 1, np.cumsum(lengths, dtype=np.int64)
    begins_and_ends = np.stack([ends[first] - lengths[first], ends[last]], axis=1)
    times = [len(encoder.before), len(encoder.after)]
    places = np.repeat(begins_and_ends, times, axis=1).ravel()
    tokens = np.insert(tokens, places, np.tile(np.array(encoder.before + encoder.after, tokens.dtype), len(with_any)))
    lengths[first] += times[0]
    lengths[last] += times[1]
    num_ids = np.bincount(document_of, lengths, len(documents)).astype(np.int64)
    return tokens, lengths, with_any, num_ids


@functools.cache
def _splitter(engine: SentenceEngine) -> SentenceSplitter:
    """One per process."""
    return load_splitter(engine)


@functools.cache
def _workers_encoder(settings: TokenizeSettings) -> Encoder:
    """One encoder per worker process."""
    return build_encoder(settings.tokenizer, settings.bos, settings.eos, settings.engine, settings.family)


def _encode_in_worker(batch: RawBatch, settings: TokenizeSettings) -> _EncodedBatch:
    return _encode(batch, settings, _workers_encoder(settings))


def _encoded_in_order(
    batches: Iterator[RawBatch], settings: TokenizeSettings, encoder: Encoder
) -> Iterator[_EncodedBatch]:
    """Encode batches here (one worker) or in several at once, a bounded number ahead; results keep the order."""
    if settings.workers == 1:
        yield from (_encode(batch, settings, encoder) for batch in batches)
        return
    if encoder.engine in ENGINES:
        settings = replace(settings, engine=encoder.engine)  # a worker uses the parent's engine or fails
    batch: RawBatch | None = None

    def what_to_do() -> str:
        where = f"{batch.file}:{batch.first_line}, " if batch else ""
        return f" (a batch being read began at {where}{settings.workers} workers); use fewer --workers and run again"

    with _executor(settings, encoder, what_to_do) as (pool, encode):
        waiting: deque[Future[_EncodedBatch]] = deque()
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > BATCHES_PER_WORKER * settings.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _executor(
    settings: TokenizeSettings, encoder: Encoder, what_to_do: Callable[[], str]
) -> Iterator[tuple[Executor, Callable[[RawBatch], _EncodedBatch]]]:
    """Threads for the native core, which works outside the interpreter; processes for all else, so for splitting."""
    if encoder.engine == "native" and not settings.split_sentences:
        pool = ThreadPoolExecutor(settings.workers)
        try:
            yield pool, functools.partial(_encode, settings=settings, encoder=encoder)
        finally:
            pool.shutdown(cancel_futures=True)
        return
    with worker_pool(settings.workers, what_to_do) as processes:
        yield processes, functools.partial(_encode_in_worker, settings=settings)


# ---- what the trainer loads


@dataclass(frozen=True)
class TokenSet:
    """A finished token set; `prefix` is the path Megatron-Core wants (without .bin and .idx)."""

    prefix: str
    manifest: Manifest
    num_documents: int
    num_tokens: int
    dtype: str
    tokenizer: TokenizerInfo
    num_sequences: int  # as many as documents, unless they are sentences
    source_share: dict[str, float] = field(default_factory=dict)  # of the tokens; adds up to 1
    lang_share: dict[str, float] = field(default_factory=dict)

    @property
    def is_sentences(self) -> bool:
        return self.manifest.details.get("sequences") == SENTENCES

    @property
    def is_conversations(self) -> bool:
        return self.manifest.details.get("sequences") == CONVERSATIONS

    @property
    def origin(self) -> str:
        """"original" or "machine_translated", as the stages behind it or --origin said."""
        return self.manifest.origin.kind

    @property
    def tokenizer_sha256(self) -> str:
        return self.tokenizer.sha256

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size


def load_token_set(folder: str | Path) -> TokenSet:
    """Check a token set without reading its tokens (manifest, sizes, index) and describe it; CorpusError if damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CorpusError(f"token set {folder} does not exist; make it with tools/tokenize_corpus.py (of conversations: "
                          "tools/tokenize_chat.py)")
    manifest = load_manifest(folder)
    if manifest.stage not in (STAGE, CHAT_STAGE):
        raise CorpusError(f"{folder} is the result of stage {manifest.stage!r}, not a token set")
    if "shard" in manifest.settings:
        raise CorpusError(f"{folder} is shard {manifest.settings['shard']} of a token set; tools/tokenize_corpus.py --merge")
    try:
        info = TypeAdapter(TokenizerInfo).validate_python(manifest.details.get("tokenizer"))
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise CorpusError(f"the manifest of {folder} does not describe a tokenizer: {problem}") from None
    _check_tokens(folder, manifest)
    counts = manifest.counts
    return TokenSet(
        prefix=str(folder / NAME),
        manifest=manifest,
        num_documents=counts.documents,
        num_tokens=counts.tokens,
        dtype=str(manifest.details["dtype"]),
        tokenizer=info,
        num_sequences=int(manifest.details.get("num_sequences", counts.documents)),
        source_share={name: group.tokens / counts.tokens for name, group in counts.by_source.items()},
        lang_share={name: group.tokens / counts.tokens for name, group in counts.by_lang.items()},
    )


def _check_tokens(folder: Path, manifest: Manifest) -> None:
    """Compare the manifest, the index and the size of the .bin file with each other."""
    check_files(folder, manifest)
    index = read_index(folder / f"{NAME}.idx")
    size = (folder / f"{NAME}.bin").stat().st_size
    claims = {
        "bytes in .bin": (size, index.num_tokens_bytes),
        "documents": (manifest.counts.documents, index.num_documents),
        "sequences": (manifest.details.get("num_sequences", manifest.counts.documents), len(index.lengths)),
        "tokens": (manifest.counts.tokens, index.num_tokens),
        "type of ids": (manifest.details.get("dtype"), index.dtype.name),
    }
    for what, (there, indexed) in claims.items():
        if there != indexed:
            raise CorpusError(f"{folder}: {what}: {there} found, {indexed} according to {NAME}.idx; tokenise again")
