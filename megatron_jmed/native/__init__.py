"""Is the C++ core there, does it know this model, and does it give sentencepiece's ids?

In: a SentencePiece .model file and the installed sentencepiece with the same file. Out: an encoder three to five
times as fast, or NativeUnavailable with the reason (not compiled, a model of another kind, ids that differ).
Invariant: no encoder leaves this file that has not given sentencepiece's own ids for all of PROBES.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    from megatron_jmed.native import _core
except ImportError as _error:
    _core, _MISSING = None, str(_error)

VERSION = _core.VERSION if _core else None
# Each hits something where two implementations part: ties, unknown characters and their bytes, white space, names of
# special pieces, characters beyond 16 bits, control characters, sums that pass sentencepiece's limit of 100,000.
PROBES = (
    "",
    " ",
    "   two  spaces\n\n\tand lines\r\n ",
    "急性心筋梗塞の患者に対して、アスピリン325mgを投与した。",
    "The patient's creatinine was 1.23 mg/dL (ref. 0.6-1.1), eGFR ≥60 mL/min/1.73m².",
    "▁▁already▁escaped <s></s><unk><0x0A><EOD>",
    "ｶﾞ①㍉ 髙﨑𠮷野家𩸽 👩‍⚕️🏥\U0010fffd\ufffd\ufeff",
    "\x00\x01\x7f\x85\u200b\u2028\ue000",
    "العربية हिन्दी ไทย 한국어 Ελληνικά",
    "あ" * 3000 + "a" * 3000 + "=" * 3000 + "0123456789" * 300,
    "\ue000" * 6000 + "患者" * 500,
)


class NativeUnavailable(Exception):
    """The core cannot be used; the message says why."""


def sums_in_double(sentencepiece_version: str) -> bool:
    """Whether this version of sentencepiece sums scores in double (up to 0.2.1) rather than in float (from 0.2.2 on)."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", sentencepiece_version)[:3])
    return numbers < (0, 2, 2)


def load_unigram(path: Path, reference: Callable[[list[str]], list[np.ndarray]], reference_version: str) -> "_core.Unigram":
    """Build the encoder of a model and test it; `reference` gives the ids that sentencepiece has for the same file."""
    if _core is None:
        raise NativeUnavailable(f"the native core is not compiled ({_MISSING})")
    try:
        unigram = _core.Unigram(path.read_bytes())
    except ValueError as error:
        raise NativeUnavailable(f"the native core does not know models like {path.name}: {error}") from None
    check_ids(unigram, reference, reference_version)
    return unigram


def check_ids(unigram: "_core.Unigram", reference: Callable[[list[str]], list[np.ndarray]], reference_version: str) -> None:
    """Compare the ids of PROBES; NativeUnavailable names the first probe that differs."""
    texts = list(PROBES)
    ids, lengths, _ = unigram.encode(texts, double_sums=sums_in_double(reference_version))
    found = np.split(ids, np.cumsum(lengths)[:-1])
    for text, ours, theirs in zip(texts, found, reference(texts), strict=True):
        if not np.array_equal(ours, theirs):
            raise NativeUnavailable(
                f"the native core gives {len(ours)} ids for {text[:20]!r}, sentencepiece {reference_version} "
                f"{len(theirs)} or others"
            )
