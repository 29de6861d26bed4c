"""Which ids has a text under a Hugging Face tokenizer (tokenizer.json)?

In: tokenizer.json or the folder that holds it, beside it tokenizer_config.json or special_tokens_map.json, which name the
first and last token of a document. Out: the same as `tokenizer.Encoder`. Any model of the `tokenizers` library will do;
it is an optional installation (extra `hf`).
Invariant: ids are those of the library without special tokens, truncation or padding; what stands before and after a
document is this project's policy (`--no-bos`, `--no-eos`), whatever the file's own post-processor would add. With bos and
eos that is what Megatron-LM's HuggingFaceTokenizer with --append-eod writes for a tokenizer that prepends <s>.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from megatron_jmed.corpus.indexed import token_dtype
from megatron_jmed.corpus.manifest import sha256_file
from megatron_jmed.corpus.tokenizer import TokenizerInfo, join_ids
from megatron_jmed.errors import CorpusError

FILE_NAME = "tokenizer.json"
NEIGHBOURS = ("tokenizer_config.json", "special_tokens_map.json")


def is_hugging_face(path: Path) -> bool:
    """Whether a --tokenizer names one: a .json file, or a folder with a tokenizer.json."""
    return path.suffix == ".json" or (path / FILE_NAME).is_file()


class HuggingFaceEncoder:
    """Encodes texts with a Hugging Face tokenizer; the interface is that of `tokenizer.Encoder`."""

    engine = "huggingface"
    fallback = None

    def __init__(self, path: Path, bos: bool, eos: bool) -> None:
        self.file = path / FILE_NAME if path.is_dir() else path
        try:
            import tokenizers
        except ImportError:
            raise CorpusError(f"{path} needs the tokenizers library: pip install 'megatron_jmed[hf]'") from None
        if not self.file.is_file():
            raise CorpusError(f"tokenizer {self.file} does not exist; give a tokenizer.json, its folder, or a .model file")
        # Processes are this project's way to use all cores; the library's threads beside them would only compete.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(self.file))
        except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
            raise CorpusError(f"tokenizer {self.file} is not one of the tokenizers library: {error}") from None
        self.version = tokenizers.__version__
        # A file may carry both, as a memory of how it was last used; a corpus must be whole.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.vocab_size = max(self.tokenizer.get_vocab_size(with_added_tokens=True), largest + 1)
        self.dtype = token_dtype(self.vocab_size)
        named = _named_tokens(self.file.parent)
        self.bos_id, self.eos_id = (self._id_of(named.get(name)) for name in ("bos_token", "eos_token"))
        self.before = [self._required(self.bos_id, "bos")] if bos else []
        self.after = [self._required(self.eos_id, "eos")] if eos else []

    def _id_of(self, token: str | None) -> int:
        found = None if token is None else self.tokenizer.token_to_id(token)
        return -1 if found is None else found

    def _required(self, id_: int, name: str) -> int:
        if id_ < 0:
            raise CorpusError(
                f"{' and '.join(NEIGHBOURS)} beside {self.file} name no {name}_token that it knows; "
                f"add it there, or use --no-{name}"
            )
        return id_

    def info(self) -> TokenizerInfo:
        """Describe the tokenizer (reads the file once more, to hash it)."""
        return TokenizerInfo(
            file=self.file.name,
            sha256=sha256_file(self.file),
            vocab_size=self.vocab_size,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            engine=self.engine,
            engine_version=self.version,
            family="tokenizers",
        )

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `tokenizer.Encoder.encode`: (ids of all texts end to end with bos and eos, number of ids of each)."""
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return join_ids([np.array(one.ids, np.int64) for one in found], self.dtype, self.before, self.after)

    def encode_lines(self, block: bytes, text_field: str) -> None:
        """None: this encoder takes texts only."""


def _named_tokens(folder: Path) -> dict[str, str]:
    """bos_token and eos_token as the files beside tokenizer.json name them; the first file that names one counts."""
    named: dict[str, str] = {}
    for name in NEIGHBOURS:
        if not (folder / name).is_file():
            continue
        try:
            words: Any = json.loads((folder / name).read_bytes())
        except ValueError as error:
            raise CorpusError(f"{folder / name} is not JSON: {error}") from None
        for role in ("bos_token", "eos_token"):
            token = words.get(role) if isinstance(words, dict) else None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named.setdefault(role, token)
    return named
