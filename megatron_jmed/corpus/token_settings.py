"""How is a corpus to be tokenised?

In: the words of tools/tokenize_corpus.py. Out: settings that a run and its workers share.
Invariant: a value that no run could use is refused here, before anything is read.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_jmed.corpus.sentences import SENTENCE_ENGINES, SentenceEngine
from megatron_jmed.corpus.tokenizer import ENGINES, FAMILIES, Engine, Family
from megatron_jmed.errors import CorpusError

ORIGINS = ("original", "machine_translated")


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
