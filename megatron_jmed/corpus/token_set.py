"""Which token set does the trainer load, and is it whole?

In: a folder that tokens.py or chat_tokens.py finished. Out: a `TokenSet` that says what is in it and where.
Invariant: the manifest, the index and the size of the .bin file agree; no token is read.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from megatron_jmed.corpus.indexed import read_index
from megatron_jmed.corpus.manifest import Manifest, check_files, load_manifest
from megatron_jmed.corpus.tokenizer import TokenizerInfo
from megatron_jmed.errors import CorpusError

TOKENS_STAGE = "tokenize"  # tokens.py
CHAT_STAGE = "tokenize_chat"  # chat_tokens.py
NAME = "tokens"
WEIGHTS_NAME = f"{NAME}.weights"  # of conversations: how much each token counts in the loss
SENTENCES = "sentences"
CONVERSATIONS = "conversations"


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
    if manifest.stage not in (TOKENS_STAGE, CHAT_STAGE):
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
