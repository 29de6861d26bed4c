"""Is a text Japanese, English or something else?

In: a text and the language it is declared to be in. Out: 'ja', 'en', 'other', or None where the text does not say.
Kana decide first (only Japanese has them, and counting is a hundred times faster than a model); Compact Language
Detector 2 (pycld2) is asked about the rest: Latin letters, and kanji alone, which may be Chinese.
Invariant: the answer depends on the text only, looked at in at most SAMPLE_CHARACTERS characters.
"""

import pycld2

from megatron_jmed.corpus.scan import counter

LANGUAGES = ("ja", "en", "other")
SAMPLE_CHARACTERS = 3000
LETTERS = r"[^\W\d_]"
COUNT = counter({"letters": LETTERS, "kana": "[ぁ-ゖァ-ヺｦ-ﾝ]", "han": "[㐀-䶿一-鿿豈-﫿々]"})
# Japanese prose is half kana; telegraphic clinical notes with English terms go down to about a tenth of the letters.
KANA_SHARE_OF_JAPANESE = 0.08
# A language that CLD2 finds in less of the text than this is a quotation, or a guess from names and abbreviations.
PERCENT_OF_A_SURE_ANSWER = 60
MIN_LETTERS = 20


def find_language(text: str, known: tuple[str, ...] = LANGUAGES) -> str | None:
    """'ja', another of the known codes of CLD2, or 'other', if the text shows it clearly, else None."""
    text = sample(text, SAMPLE_CHARACTERS)
    letters, kana, han, _ = COUNT(text)
    if kana and kana >= KANA_SHARE_OF_JAPANESE * letters:
        return "ja"
    if letters < MIN_LETTERS:
        return None
    found = _ask_cld2(text, known)
    if han > letters / 2:
        # Lists of diseases and drugs are kanji alone: without a clear answer they are not called Chinese.
        return None if found == "en" else found
    return found


def sample(text: str, num_characters: int) -> str:
    """The text, or three pieces of it: from the beginning, the middle and the end."""
    if len(text) <= num_characters:
        return text
    piece, middle = num_characters // 3, len(text) // 2
    return "\n".join((text[:piece], text[middle - piece // 2 : middle + piece // 2], text[-piece:]))


def _ask_cld2(text: str, known: tuple[str, ...]) -> str | None:
    try:
        reliable, _, answers = pycld2.detect(text, isPlainText=True)
    except pycld2.error:  # noncharacters, which CLD2 takes for broken UTF-8
        return None
    _, code, percent, _ = answers[0]
    if code in known:
        # A note with its translation, or English with Japanese questions, is in both: the larger part names it.
        percent = sum(share for _, found, share, _ in answers if found in known)
    if not reliable or percent < PERCENT_OF_A_SURE_ANSWER or code == "un":
        return None
    return code if code in known else "other"
