"""Which ids does a conversation become, and how much does each count in the loss?

In: the pieces of a rendered conversation (chat.py). Out: its ids and a weight for each: the piece's where it is learnt, 0 where
it is only read. The rendered text is tokenised as a whole, never piece by piece: LLM-jp's SentencePiece puts a space before
whatever it is given, so an answer encoded apart would get a token that no model writes there. Which token belongs to which piece
is told by its place in the text. A token that lies on both sides of a border is part of what is read, so it has weight 0; the
manifest counts them (with LLM-jp's template and tokenizer there are none: the line end before an answer is a token of its own).

Marks (<s>, </s>) are ids only where the template puts them. A turn that spells one out could end itself and go on in another's
name; such a record is refused, as "spells_a_mark".
Invariant: the text before each learnt token, tokenised as a chat program does it, is what stands before that token here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_jmed.corpus.chat import ChatTemplate, Piece, Turn
from megatron_jmed.corpus.hf_tokenizer import HuggingFaceEncoder
from megatron_jmed.corpus.tokenizer import Encoder
from megatron_jmed.errors import CorpusError

SPACE = "\u2581"  # SentencePiece's visible space; in a text it is a space too


@dataclass(frozen=True)
class EncodedConversation:
    """`ids` and `weights` (f2) of one conversation, and how many tokens lie across a border of what is learnt."""

    ids: np.ndarray
    weights: np.ndarray
    num_straddling: int


class ChatEncoder:
    """Encodes conversations with a tokenizer of either kind; CorpusError if the template's marks are no tokens of it."""

    def __init__(self, encoder: Encoder | HuggingFaceEncoder, template: ChatTemplate):
        self.dtype, self.template = encoder.dtype, template
        spans = _HuggingFaceSpans if isinstance(encoder, HuggingFaceEncoder) else _SentencePieceSpans
        self._spans = spans(encoder)
        unknown = [mark for mark in (template.bos, template.eos) if mark and mark not in self._spans.marks]
        if unknown:
            raise CorpusError(f"{template.name} writes {' and '.join(map(repr, unknown))}, which the tokenizer does not know as a "
                              "mark; take the template that belongs to the tokenizer")

    def spells_a_mark(self, turns: Iterable[Turn]) -> bool:
        return any(mark in turn.content for turn in turns for mark in self._spans.marks)

    def encode(self, conversations: Sequence[Sequence[Piece]]) -> list[EncodedConversation]:
        """The conversations given as pieces, each with at least one token."""
        texts = ["".join(piece.text for piece in pieces) for pieces in conversations]
        return [self._weighed(pieces, *spans) for pieces, spans in zip(conversations, self._spans.encode(texts), strict=True)]

    def _weighed(self, pieces: Sequence[Piece], ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> EncodedConversation:
        borders = np.cumsum([self._spans.length(piece.text) for piece in pieces])
        weight_of = np.array([piece.weight for piece in pieces], dtype="<f2")
        first = np.searchsorted(borders, begins, side="right")
        last = np.searchsorted(borders, np.maximum(ends - 1, begins), side="right")
        weights = np.where(first == last, weight_of[first], np.float16(0))
        return EncodedConversation(ids.astype(self.dtype), weights.astype("<f2"), int(np.count_nonzero(first != last)))


class _SentencePieceSpans:
    """Ids with the UTF-8 bytes that each stands for. The stretches between marks are encoded each for itself, as a Hugging Face
    tokenizer of the same model does; a model that normalises its texts moves bytes and is refused."""

    def __init__(self, encoder: Encoder):
        self._encoder, model = encoder, encoder.processor
        pieces = [model.id_to_piece(number) for number in range(len(model))]
        self.marks = {piece: number for number, piece in enumerate(pieces) if model.is_control(number) or model.is_unknown(number)}
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self.marks, key=len, reverse=True))) + ")")
        self._num_bytes = np.array([1 if model.is_byte(number) else self.length(piece) for number, piece in enumerate(pieces)])

    @staticmethod
    def length(text: str) -> int:
        return len(text.replace(SPACE, " ").encode())

    def encode(self, texts: list[str]) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        split = [[part for part in self._split.split(text) if part] for text in texts]
        ids, lengths = self._encoder.encode([part for parts in split for part in parts if part not in self.marks])
        encoded = iter(np.split(ids, np.cumsum(lengths)[:-1]))
        for parts in split:
            rows, at = [], 0
            for part in parts:
                size = self.length(part)
                rows.append(self._mark(part, at) if part in self.marks else self._spans(part, next(encoded), at))
                at += size
            yield tuple(np.concatenate(column) for column in zip(*rows, strict=True))

    def _mark(self, mark: str, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array([self.marks[mark]]), np.array([at]), np.array([at + len(mark)])

    def _spans(self, text: str, ids: np.ndarray, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ends = np.cumsum(self._num_bytes[ids])
        added = int(ends[-1]) - self.length(text) if len(ends) else -1
        if added not in (0, 1):  # 1: the space that SentencePiece puts in front
            raise CorpusError(f"{self._encoder.path} normalises its texts, so its tokens have no place in them; chat data need a "
                              "model like LLM-jp's (identity normaliser, byte fallback), or a tokenizer.json")
        ends = at + ends - added
        return ids, np.maximum(np.concatenate([[at], ends[:-1]]), at), ends


class _HuggingFaceSpans:
    """Ids with the UTF-8 bytes that each stands for. The tokenizers library gives every byte of a stretch that is spelled in bytes
    the place of the whole stretch (0.22), so there the bytes are counted."""

    def __init__(self, encoder: HuggingFaceEncoder):
        self._tokenizer = encoder.tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self.marks = {token.content: number for number, token in added.items() if token.special}
        vocabulary = self._tokenizer.get_vocab()
        self._byte_ids = {vocabulary[name] for name in (f"<0x{byte:02X}>" for byte in range(256)) if name in vocabulary}

    @staticmethod
    def length(text: str) -> int:
        return len(text.encode())

    def encode(self, texts: list[str]) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for text, one in zip(texts, self._tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            byte_of = np.concatenate([[0], np.cumsum([len(character.encode()) for character in text])])
            ids, (begins, ends) = np.array(one.ids, dtype=np.int64), byte_of[np.array(one.offsets, dtype=np.int64).reshape(-1, 2).T]
            self._spread_bytes(ids, begins, ends)
            yield ids, begins, ends

    def _spread_bytes(self, ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        """Give each byte of a stretch its own place."""
        spelled = np.isin(ids, list(self._byte_ids))
        first = 0
        while first < len(ids):
            last = first + 1
            while last < len(ids) and spelled[first] and spelled[last] and begins[last] == begins[first]:
                last += 1
            if spelled[first] and last - first == ends[first] - begins[first]:
                begins[first:last] = begins[first] + np.arange(last - first)
                ends[first:last] = begins[first:last] + 1
            first = last
