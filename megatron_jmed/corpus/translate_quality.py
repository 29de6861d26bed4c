"""Is a translation fit to train on, and if not, why?

In: pieces of a document and the model's answers. Out: None, or a reason and a detail with the numbers. Reasons, in the order in
which they are looked for:
* refused: the server would not translate a piece (its content filter, or a request that it calls too large);
* truncated: the answer reached the limit of tokens (finish_reason "length") or did not end;
* empty: a piece has no answer but white space;
* copied_through: the source's own words stand in the answer: it equals the source, or holds much of it;
* wrong_language: the answer is clearly in another language than the target (language.py);
* length_ratio: characters of the answer over those of the source are out of bounds: something was left out, or made up.
The last three are asked of the whole document, and of each piece that is long enough to tell: a document may have pieces that
fail (a list of references is rightly left as it is), but not more than `max_bad_share` of its characters.
Invariant: the verdict depends on the texts and the bounds alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_jmed.corpus.language import LANGUAGES, find_language

# Characters of the target over those of the source: what is outside is no translation of the whole (LAB.md says how they were
# chosen).
LENGTH_RATIOS = {("en", "ja"): (0.2, 0.8), ("ja", "en"): (1.3, 5.5)}
ANY_LENGTH_RATIO = (0.3, 3.5)
MIN_CHARACTERS_TO_JUDGE_A_PIECE = 80
SLACK_CHARACTERS = 20  # of a few words no ratio can be asked
GRAM_CHARACTERS = 12  # so long a run is rarely the same by chance or as a name of a drug or person
BLANKS = re.compile(r"\s+")
Finish = Literal["stop", "length", "refused"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of a piece; `detail` says why there is no text."""

    text: str
    finish: Finish = "stop"
    detail: str = ""


@dataclass(frozen=True)
class Bounds:
    """What a translation from one language into another must keep to."""

    from_lang: str
    to_lang: str
    length_ratio: tuple[float, float]
    max_copied_share: float = 0.3  # of the source's runs of GRAM_CHARACTERS
    max_bad_share: float = 0.2  # of the source's characters


def default_length_ratio(from_lang: str, to_lang: str) -> tuple[float, float]:
    return LENGTH_RATIOS.get((from_lang, to_lang), ANY_LENGTH_RATIO)


def find_problem(sources: Sequence[str], answers: Sequence[Answer], whole: str, bounds: Bounds) -> tuple[str, str] | None:
    """The first reason why a document's translation is not fit, with the numbers; `whole` is the joined translation."""
    for reason, is_so in (
        ("refused", lambda answer: answer.finish == "refused"),
        ("truncated", lambda answer: answer.finish == "length"),
        ("empty", lambda answer: not answer.text.strip()),
    ):
        if found := [answer for answer in answers if is_so(answer)]:
            return reason, f"{len(found)} of {len(answers)} piece(s)" + (f": {found[0].detail}" if found[0].detail else "")
    if problem := _text_problem("\n".join(sources), whole, bounds):
        return problem
    bad: dict[str, int] = {}
    for source, answer in zip(sources, answers, strict=True):
        if len(source) >= MIN_CHARACTERS_TO_JUDGE_A_PIECE and (problem := _text_problem(source, answer.text, bounds)):
            bad[problem[0]] = bad.get(problem[0], 0) + len(source)
    share = sum(bad.values()) / max(sum(map(len, sources)), 1)
    if share <= bounds.max_bad_share:
        return None
    worst = max(bad, key=lambda reason: bad[reason])
    return worst, f"pieces with {share:.2f} of the characters, at most {bounds.max_bad_share}: {', '.join(sorted(bad))}"


def _text_problem(source: str, translated: str, bounds: Bounds) -> tuple[str, str] | None:
    share = copied_share(source, translated)
    if share > bounds.max_copied_share:
        return "copied_through", f"{share:.2f} of the source stands in the translation, at most {bounds.max_copied_share}"
    found = find_language(translated, (bounds.from_lang, bounds.to_lang, *LANGUAGES))
    if found not in (None, bounds.to_lang):
        return "wrong_language", f"{found}, not {bounds.to_lang}"
    low, high = bounds.length_ratio
    if not low * len(source) - SLACK_CHARACTERS <= len(translated) <= high * len(source) + SLACK_CHARACTERS:
        ratio = len(translated) / len(source)
        return "length_ratio", f"{len(translated)} characters of {len(source)}: {ratio:.2f}, not {low} to {high}"
    return None


def copied_share(source: str, translated: str) -> float:
    """How much of the source stands in the translation: 1 if it is contained, else its share of common runs of characters.

    Capitals and white space do not count.
    """
    source, translated = (BLANKS.sub("", text).casefold() for text in (source, translated))
    if not source or source in translated:
        return 1.0
    runs = [source[i : i + GRAM_CHARACTERS] for i in range(len(source) - GRAM_CHARACTERS + 1)]
    there = {translated[i : i + GRAM_CHARACTERS] for i in range(len(translated) - GRAM_CHARACTERS + 1)}
    return sum(run in there for run in runs) / len(runs) if runs else 0.0
