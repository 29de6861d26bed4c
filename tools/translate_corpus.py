"""Translate documents by a model behind an OpenAI-compatible server, or in a Hugging Face folder; bad translations are filed."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from megatron_jmed.corpus.stage import merge_shards, parse_shard
from megatron_jmed.corpus.translate import DEFAULT_PROMPT, Backend, TranslateSettings, translate
from megatron_jmed.corpus.translate_server import KEY_VARIABLE, ChatServer
from megatron_jmed.errors import CorpusError, run_tool


def main() -> None:
    words = _parser().parse_args()
    if words.merge:
        if words.source:
            raise CorpusError("--merge takes TARGET alone")
        manifest = merge_shards(words.target, words.overwrite, words.max_bad)
    else:
        if not words.source or bool(words.server) == bool(words.hf):
            raise CorpusError("give SOURCE, TARGET and either --server URL with --model NAME or --hf FOLDER; or --merge and TARGET")
        settings, make_backend = _with_server(words) if words.server else _with_hf(words)
        manifest = translate(
            words.source,
            words.target,
            settings,
            make_backend,
            workers=words.workers,
            text_field=words.text_field,
            max_bad=100 if words.max_bad is None else words.max_bad,
            shard=parse_shard(words.shard) if words.shard else None,
            overwrite=words.overwrite,
            licence=words.licence,
        )
    counts, details = manifest.counts, manifest.details["counts"]
    print(f"{words.target}: {counts.documents:,} documents of {details.get('pieces', 0):,} pieces, "
          f"{counts.characters:,} characters from {details.get('source_characters', 0):,}; removed {counts.dropped}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="file, folder or glob (not needed with --merge)")
    parser.add_argument("target", type=Path, help="folder to write; a killed run goes on where it was, no text is asked for twice")
    parser.add_argument("--from", dest="from_lang", default="en", metavar="CODE", help="language of the source (default: en)")
    parser.add_argument("--to", dest="to_lang", default="ja", metavar="CODE", help="language of the result (default: ja)")
    server = parser.add_argument_group("a server", f"the key, where one is needed, is read from {KEY_VARIABLE}")
    server.add_argument("--server", metavar="URL", help="OpenAI-compatible, e.g. http://host:8000/v1")
    server.add_argument("--model", metavar="NAME", help="what the server calls the model")
    server.add_argument("--concurrency", type=int, default=16, help="requests at once, all workers together (default: 16)")
    server.add_argument("--tries", type=int, default=8, help="times a piece is asked for, waiting 0.5 s, 1 s, ... 60 s between")
    server.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one answer (default: 600)")
    body_help = 'more fields of the request, e.g. \'{"seed": 1}\'; null takes a field out, e.g. \'{"temperature": null}\''
    server.add_argument("--body", metavar="JSON", help=body_help)
    hf = parser.add_argument_group("a Hugging Face model", "causal, or encoder-decoder (which takes no prompt)")
    hf.add_argument("--hf", type=Path, metavar="FOLDER", help="instead of a server; needs the installation [eval]")
    hf.add_argument("--hf-languages", nargs=2, metavar=("FROM", "TO"), help="the model's own codes, e.g. eng_Latn jpn_Jpan")
    prompt_help = f"file with {{text}}, {{from}} and {{to}} (the languages' names); default: {DEFAULT_PROMPT!r}"
    parser.add_argument("--prompt", type=Path, metavar="FILE", help=prompt_help.replace("%", "%%"))
    parser.add_argument("--max-tokens", type=int, default=4096, help="of one answer; one that needs more is filed as truncated")
    piece_help = "documents are cut at ends of sentences into pieces no longer than this (default: 2000)"
    parser.add_argument("--max-piece-characters", type=int, default=2000, help=piece_help)
    ratio_help = "characters of the result over those of the source (default: 0.2 0.8 for en to ja, 1.3 5.5 for ja to en)"
    parser.add_argument("--length-ratio", type=float, nargs=2, metavar=("MIN", "MAX"), help=ratio_help)
    copied_help = "of the source that may stand in the result as it was (default: 0.3)"
    parser.add_argument("--max-copied-share", type=float, default=0.3, help=copied_help)
    bad_help = "of a document's characters in pieces that were copied, in a wrong language or of a wrong length (default: 0.2)"
    parser.add_argument("--max-bad-share", type=float, default=0.2, help=bad_help)
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--workers", type=int, default=1, help="processes; more than 1 helps where a source is many small files")
    parser.add_argument("--shard", metavar="i/n", help="do every n-th file only, e.g. 1/8; later --merge")
    parser.add_argument("--merge", action="store_true", help="publish the finished shards in TARGET as one result")
    parser.add_argument("--max-bad", type=int, help="bad records that are kept aside before the run stops (default: 100)")
    parser.add_argument("--licence", help="recorded in the manifest (default: what the source's manifest says)")
    parser.add_argument("--overwrite", action="store_true", help="replace a result made from something else; answers are kept")
    return parser


def _with_server(words: argparse.Namespace) -> tuple[TranslateSettings, Any]:
    problems = [] if words.model else ["--server needs --model NAME"]
    problems += [] if words.server.startswith(("http://", "https://")) else [f"--server {words.server} is no http:// address"]
    problems += [f"--{name} {value} is too small; at least 1 is needed"
                 for name, value in (("concurrency", words.concurrency), ("tries", words.tries), ("max-tokens", words.max_tokens))
                 if value < 1]
    try:
        more = json.loads(words.body or "{}")
    except ValueError as error:
        more, problems = {}, [*problems, f"--body is no JSON: {error}"]
    if not isinstance(more, dict) or {"model", "messages", "stream", "n"} & more.keys():
        problems.append("--body must be a JSON object without model, messages, stream and n")
    if problems:
        raise CorpusError("; ".join(problems))
    body = {"temperature": 0, "max_tokens": words.max_tokens, **more}
    prompt = _prompt(words)
    settings = _settings(words, model=words.model, prompt=prompt, decoding=body)
    concurrency = max(1, words.concurrency // max(1, words.workers))
    return settings, partial(ChatServer, words.server, words.model, body, concurrency, words.tries, words.timeout, 0.5)


def _with_hf(words: argparse.Namespace) -> tuple[TranslateSettings, Any]:
    try:
        from megatron_jmed.evaluate.hf_model import check_hf_folder, fingerprint
        from megatron_jmed.evaluate.hf_translator import reads_prompts
    except ImportError as error:
        raise CorpusError(f"--hf needs {error.name}, which is not installed: pip install -e '.[eval]'") from None
    if words.workers != 1:
        raise CorpusError(f"--workers {words.workers}: with --hf every worker would load the model; use --shard")
    check_hf_folder(words.hf)
    prompt = _prompt(words) if reads_prompts(words.hf) else None
    if prompt is None and words.prompt:
        raise CorpusError(f"--prompt: {words.hf} is an encoder-decoder, which takes the plain text")
    decoding = {"max_tokens": words.max_tokens, "fingerprint": fingerprint(words.hf), "languages": words.hf_languages}
    settings = _settings(words, model=words.model or words.hf.resolve().name, prompt=prompt, decoding=decoding)
    return settings, partial(_load_hf, words.hf, words.max_tokens, words.hf_languages)


def _load_hf(folder: Path, max_tokens: int, languages: list[str] | None) -> Backend:
    from megatron_jmed.evaluate.hf_translator import HuggingFaceTranslator

    return HuggingFaceTranslator(folder, max_tokens, (languages[0], languages[1]) if languages else None)


def _settings(words: argparse.Namespace, **others: Any) -> TranslateSettings:
    return TranslateSettings(
        from_lang=words.from_lang,
        to_lang=words.to_lang,
        max_piece_characters=words.max_piece_characters,
        length_ratio=tuple(words.length_ratio) if words.length_ratio else None,
        max_copied_share=words.max_copied_share,
        max_bad_share=words.max_bad_share,
        **others,
    )


def _prompt(words: argparse.Namespace) -> str:
    if not words.prompt:
        return DEFAULT_PROMPT
    try:
        return words.prompt.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CorpusError(f"--prompt {words.prompt} cannot be read: {error}") from None


if __name__ == "__main__":
    run_tool(main)
