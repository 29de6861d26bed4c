"""The one place where a SentencePiece model is opened."""

from pathlib import Path

import sentencepiece

from megatron_jmed.errors import CorpusError


def open_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """CorpusError where there is no file, or one of another kind."""
    if not path.is_file():
        raise CorpusError(f"tokenizer {path} does not exist; give a SentencePiece .model file or a Hugging Face tokenizer.json")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CorpusError(f"tokenizer {path} is not a SentencePiece model: {error}") from None
