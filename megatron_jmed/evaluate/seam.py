"""Where does an option begin, in tokens?

Prompt and option are tokenized TOGETHER: a tokenizer may merge across the seam, or put a blank before a text of its own.
What is scored begins where the options' tokens leave the prompt's. Shared by the back ends that tokenize themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from megatron_jmed.errors import CheckpointError

T = TypeVar("T", int, str)  # a token: its id, or the text that a server gives for it


@dataclass(frozen=True)
class Request:
    """The tokens of one question: what is read once, what is scored for each option, and what did not fit."""

    prefix: list[int]
    continuations: list[list[int]]
    num_truncated: int


def split_at_seam(prompt: list[T], wholes: Sequence[list[T]]) -> tuple[list[T], list[list[T]]]:
    """Split at the longest prefix which all sequences share with the prompt's own tokens.

    Usually that is the whole prompt; where the tokenizer merged the prompt's last character with an option's first,
    the seam moves left for ALL options alike, so that they stay comparable.
    """
    shared = min(_num_shared(prompt, whole) for whole in wholes)
    return prompt[:shared], [whole[shared:] for whole in wholes]


def _num_shared(left: list[T], right: list[T]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def fit_request(name: str, prefix: list[int], continuations: list[list[int]], num_bos: int, max_tokens: int) -> Request:
    """Drop tokens after <s> until prefix and longest option fit the context; CheckpointError if the option alone does not."""
    longest = max(map(len, continuations))
    room = max_tokens - longest - num_bos
    if room < 1:
        raise CheckpointError(f"{name}: an option of {longest} tokens does not fit a context of {max_tokens}")
    num_truncated = max(0, len(prefix) - num_bos - room)
    return Request(prefix[:num_bos] + prefix[num_bos + num_truncated :], continuations, num_truncated)
