"""Which token ids does the trainer read, and from which texts and tokenizer do they come?

In: a source of documents and a tokenizer (SentencePiece or Hugging Face). Out: TARGET/tokens.bin and tokens.idx
(Megatron-Core's format), removed/REASON.jsonl for records that are no documents, and manifest.json. Three parts that
know nothing of each other: reader.py reads, token_encoding.py (in several threads or processes) turns a raw batch into
ids, indexed.py writes. A document is one sequence of the index, or (`split_sentences`) one for each of its sentences, `<s>`
before the first, `</s>` after the last.
While it runs, all that is in TARGET/.parts, with the place up to which it is whole (token_progress.py): a rerun goes on
there. With shard (i, n) the run takes a range of the files and writes TARGET/shard-i-of-n (token_shards.py joins them).
Invariant: documents keep the order of the source, and the output is the same, byte for byte, for any number of
workers or shards and however often the run was killed.
"""

import contextlib
import os
import sys
import time
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import JsonValue

from megatron_jmed.corpus import token_progress
from megatron_jmed.corpus.counts import Counting
from megatron_jmed.corpus.document import RemovedRecords
from megatron_jmed.corpus.indexed import TokenWriter
from megatron_jmed.corpus.manifest import (
    PARTIAL_NAME,
    Counts,
    InputFile,
    Manifest,
    Origin,
    OutputFile,
    code_version,
    publish,
)
from megatron_jmed.corpus.part_folders import PARTS, REMOVED, file_hashes, key_hash, link_or_copy, opened
from megatron_jmed.corpus.progress_bar import progress_bar
from megatron_jmed.corpus.reader import Source, find_source
from megatron_jmed.corpus.sentences import load_splitter
from megatron_jmed.corpus.shards import check_shard, file_range, of_shard, shard_folder
from megatron_jmed.corpus.token_encoding import encoded_in_order
from megatron_jmed.corpus.token_progress import Progress, begin, load_progress, remaining_batches
from megatron_jmed.corpus.token_set import NAME, SENTENCES, TOKENS_STAGE
from megatron_jmed.corpus.token_settings import ORIGINS, TokenizeSettings
from megatron_jmed.corpus.tokenizer import Encoder, build_encoder
from megatron_jmed.errors import CorpusError

OUTPUT_NAMES = (f"{NAME}.bin", f"{NAME}.idx", REMOVED)


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
    with opened(target, TOKENS_STAGE, choices, inputs, OUTPUT_NAMES, settings.overwrite) as finished:
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
            stage=TOKENS_STAGE,
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
    return key_hash([TOKENS_STAGE, decisive, code_version(), [[name, hashes[name]] for name in names]])


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
    bar = progress_bar(total=source.num_bytes(), unit="B", unit_scale=True, show=settings.progress)
    bar.update(sum(path.stat().st_size for path in source.files[: progress.file]))
    places: deque[tuple[int, int]] = deque()
    batches = remaining_batches(source, settings.text_field, progress, places)
    # closing() ends the workers when this loop stops early, and not whenever the generator is collected.
    with bar, contextlib.closing(encoded_in_order(batches, settings, encoder)) as encoded_batches:
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
