"""A SentencePiece unigram model -> the tokenizer files of a Hugging Face folder.

Out: tokenizer.model (the file itself; it decides), tokenizer.json and tokenizer_config.json for AutoTokenizer, which
prepends <s> as in pre-training. Hugging Face's unigram rounds differently: on real text about one document in a
thousand gets another split at a tie (benchmarks/first_run.md), so programs of this project read tokenizer.model.
"""

import json
import shutil
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import Unigram

from megatron_jmed.corpus.sentencepiece_model import open_sentencepiece
from megatron_jmed.errors import CheckpointError

_SPACE = "\u2581"  # SentencePiece's visible space
_PROBE = "The dose  is\n5 ㎎。  発熱 🩺 "
_ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>", "mask_token": "<MASK>",
          "cls_token": "<CLS>", "sep_token": "<SEP>"}


def special_token_ids(tokenizer: Path | None) -> dict[str, int]:
    """bos, eos and pad id for config.json; LLM-jp's where no tokenizer is given."""
    if tokenizer is None:
        return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 4}
    model = open_sentencepiece(tokenizer)
    ids = {"bos_token_id": model.bos_id(), "eos_token_id": model.eos_id()}
    if model.PieceToId("<PAD>") != model.unk_id():
        ids["pad_token_id"] = model.PieceToId("<PAD>")
    return ids


def num_pieces(tokenizer: Path) -> int:
    return open_sentencepiece(tokenizer).get_piece_size()


def token_ids(tokenizer: Path, text: Path) -> list[int]:
    """<s> and the ids of a text file, as in pre-training; CheckpointError if the file is empty or no text."""
    model = open_sentencepiece(tokenizer)
    try:
        words = text.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{text}: not a text file in UTF-8: {error}") from None
    if not words.strip():
        raise CheckpointError(f"{text}: no text in it")
    return [model.bos_id(), *model.encode(words)]


def leaves_out_bos(folder: Path | None) -> bool:
    """Whether the folder has a tokenizer.json that would not put <s> in front of a text, as pre-training did."""
    path = folder / "tokenizer.json" if folder else None
    if path is None or not path.exists():
        return False
    fast = Tokenizer.from_file(str(path))
    return fast.encode("a").ids[:1] != [fast.token_to_id(_ROLES["bos_token"])]


def write_tokenizer(tokenizer: Path, folder: Path) -> dict[str, int]:
    """Write the tokenizer files into `folder` and return its special ids."""
    model = open_sentencepiece(tokenizer)
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    fast = _fast_tokenizer(model)
    if fast.encode(_PROBE).ids[1:] != model.encode(_PROBE):
        raise CheckpointError(f"{tokenizer}: AutoTokenizer would give other ids; only a unigram model that puts a space in front, "
                              "keeps white space and normalises nothing can be written")
    fast.save(str(folder / "tokenizer.json"))
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{role: piece for role, piece in _ROLES.items() if fast.token_to_id(piece) is not None},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return special_token_ids(tokenizer)


def _fast_tokenizer(model: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    pieces = range(model.get_piece_size())
    vocab = [(model.IdToPiece(i), model.GetScore(i)) for i in pieces]
    fast = Tokenizer(Unigram(vocab, unk_id=model.unk_id(), byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    fast.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    fast.add_special_tokens([AddedToken(model.IdToPiece(i), normalized=False, special=True)
                             for i in pieces if model.IsControl(i) or model.IsUnknown(i)])
    bos = model.IdToPiece(model.bos_id())
    fast.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, model.bos_id())])
    return fast
