"""How do raw batches of a source become token ids, here or in several threads or processes?

In: raw batches (reader.py), settings, an encoder. Out: an `EncodedBatch` for each, in the same order; records that are no
documents, or that give no token, are handed on as bad ones.
Invariant: the ids do not depend on the number of workers, nor on whether they are threads or processes.
"""

import contextlib
import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np
import orjson

from megatron_jmed.corpus.document import UNKNOWN, BadRecord, Document, parse_batch
from megatron_jmed.corpus.manifest import GroupCounts
from megatron_jmed.corpus.pool import worker_pool
from megatron_jmed.corpus.reader import RawBatch
from megatron_jmed.corpus.sentences import SentenceEngine, SentenceSplitter, load_splitter
from megatron_jmed.corpus.token_settings import TokenizeSettings
from megatron_jmed.corpus.tokenizer import ENGINES, Encoder, build_encoder

# Enough that no worker waits for the reader, few enough that memory stays at some megabytes per worker.
BATCHES_PER_WORKER = 3


@dataclass(frozen=True)
class EncodedBatch:
    """What became of one raw batch."""

    tokens: np.ndarray
    lengths: np.ndarray  # of each sequence
    num_sequences_of: np.ndarray | None  # each document; None: one
    groups: dict[tuple[str, str], GroupCounts]  # by (source, lang)
    bad: list[BadRecord]
    input_bytes: int


# ---- in this process or in several


def encoded_in_order(
    batches: Iterator[RawBatch], settings: TokenizeSettings, encoder: Encoder
) -> Iterator[EncodedBatch]:
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
        waiting: deque[Future[EncodedBatch]] = deque()
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > BATCHES_PER_WORKER * settings.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def _executor(
    settings: TokenizeSettings, encoder: Encoder, what_to_do: Callable[[], str]
) -> Iterator[tuple[Executor, Callable[[RawBatch], EncodedBatch]]]:
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


@functools.cache
def _workers_encoder(settings: TokenizeSettings) -> Encoder:
    """One encoder per worker process."""
    return build_encoder(settings.tokenizer, settings.bos, settings.eos, settings.engine, settings.family)


def _encode_in_worker(batch: RawBatch, settings: TokenizeSettings) -> EncodedBatch:
    return _encode(batch, settings, _workers_encoder(settings))


# ---- one batch


def _encode(batch: RawBatch, settings: TokenizeSettings, encoder: Encoder) -> EncodedBatch:
    """Parse one raw batch and encode its documents; a document that gives no token is a bad record."""
    is_plain = batch.kind == "jsonl" and not settings.split_sentences
    if is_plain and (encoded := encoder.encode_lines(batch.payload, settings.text_field)):
        tokens, lengths, counted = encoded
        groups = {
            (source or UNKNOWN, lang or UNKNOWN): GroupCounts(documents=num, characters=characters, tokens=num_tokens)
            for source, lang, num, characters, num_tokens in counted
        }
        if len(groups) == len(counted):  # else a source is called "unknown" and another not at all
            return EncodedBatch(tokens, lengths, None, groups, [], batch.input_bytes)
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
    return EncodedBatch(tokens, lengths, num_sequences_of, counts, bad, batch.input_bytes)


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
