"""Turn documents into a token set that the trainer reads: tokens.bin, tokens.idx and manifest.json."""

import argparse
import os
from pathlib import Path

from megatron_jmed.corpus.manifest import Manifest
from megatron_jmed.corpus.sentences import SENTENCE_ENGINES
from megatron_jmed.corpus.shards import parse_shard
from megatron_jmed.corpus.token_keys import merge_token_keys, tokenize_keys
from megatron_jmed.corpus.token_settings import ORIGINS, TokenizeSettings
from megatron_jmed.corpus.token_shards import merge_token_shards
from megatron_jmed.corpus.tokenizer import ENGINES, FAMILIES
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="file, folder or glob (not needed with --merge)")
    parser.add_argument("target", type=Path, help="folder to write; a killed run goes on where it was")
    parser.add_argument("--tokenizer", type=Path, help="SentencePiece .model file (not needed with --merge)")
    fields = parser.add_mutually_exclusive_group()
    fields.add_argument("--text-field", default="text", help="the field that holds the text (default: text)")
    keys_help = "several fields instead, each a token set of its own in TARGET/KEY (also with --shard and --merge)"
    fields.add_argument("--json-keys", nargs="+", metavar="KEY", help=keys_help)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--no-bos", action="store_true", help="do not put <s> before each document")
    parser.add_argument("--no-eos", action="store_true", help="do not put </s> after each document")
    engine_help = "native: the C++ core, same ids; default: native where it is compiled and knows the model"
    parser.add_argument("--engine", choices=ENGINES, default="auto", help=engine_help)
    family_help = f"whose ids: {', '.join(f'{name} = {versions}' for name, versions in FAMILIES.items())}"
    parser.add_argument("--family", choices=FAMILIES, default="float", help=family_help)
    split_help = "each sentence a sequence of its document, as BERT-like models want them; not for tools/describe_corpus.py or GPT"
    parser.add_argument("--split-sentences", action="store_true", help=split_help)
    sentence_help = "for English: nltk's punkt, or our rules; default: punkt where it is installed. Japanese has rules"
    parser.add_argument("--sentence-engine", choices=SENTENCE_ENGINES, default="auto", help=sentence_help)
    parser.add_argument("--shard", type=parse_shard, metavar="i/n", help="do the i-th of n ranges of files; later --merge")
    parser.add_argument("--merge", action="store_true", help="publish the finished shards in TARGET as one token set")
    max_bad_help = "bad records that are kept aside before the run stops (default: 100; with --merge: what the shards had)"
    parser.add_argument("--max-bad", type=int, help=max_bad_help)
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    origin_help = "of text that was translated elsewhere (default: what the stages before recorded)"
    parser.add_argument("--origin", choices=ORIGINS, help=origin_help)
    parser.add_argument("--overwrite", action="store_true", help="replace a token set made from something else")
    words = parser.parse_args()
    if words.merge != (words.source is None) or not (words.merge or words.tokenizer):
        raise CorpusError("give SOURCE, TARGET and --tokenizer, or --merge and TARGET alone")
    if words.sentence_engine != "auto" and not words.split_sentences:
        raise CorpusError(f"--sentence-engine {words.sentence_engine} splits nothing without --split-sentences")
    for folder, manifest in (_merged(words) if words.merge else _tokenized(words)).items():
        counts, sequences = manifest.counts, manifest.details.get("num_sequences")
        dropped = f", dropped {counts.dropped}" if counts.dropped else ""
        sentences = f"{sequences:,} sentences, " if sequences is not None else ""
        print(f"{folder}: {counts.documents:,} documents, {sentences}{counts.characters:,} characters, "
              f"{counts.tokens:,} tokens{dropped}")


def _merged(words: argparse.Namespace) -> dict[Path, Manifest]:
    if words.json_keys:
        made = merge_token_keys(words.target, words.json_keys, words.overwrite, words.max_bad)
        return {words.target / key: manifest for key, manifest in made.items()}
    return {words.target: merge_token_shards(words.target, words.overwrite, words.max_bad)}


def _tokenized(words: argparse.Namespace) -> dict[Path, Manifest]:
    settings = TokenizeSettings(
        tokenizer=words.tokenizer,
        text_field=words.text_field,
        bos=not words.no_bos,
        eos=not words.no_eos,
        max_bad=100 if words.max_bad is None else words.max_bad,
        licence=words.licence,
        origin=words.origin,
        family=words.family,
        engine=words.engine,
        split_sentences=words.split_sentences,
        sentence_engine=words.sentence_engine,
        workers=words.workers,
        overwrite=words.overwrite,
    )
    if words.json_keys:
        made = tokenize_keys(words.source, words.target, words.json_keys, settings, words.shard)
        return {words.target / key: manifest for key, manifest in made.items()}
    return {words.target: tokenize(words.source, words.target, settings, words.shard)}


if __name__ == "__main__":
    run_tool(main)
