"""Where does a clinical text name a person, as far as honorifics, titles and labels give it away?

In: text with its ASCII-like wide characters folded (same length). Out: (start, end) of each name, without the honorific.
Invariant: a name is reported only beside an honorific (田中さん, Dr. Smith) or a label (氏名：, Patient name:). Names that
stand alone need a trained recogniser and are not looked for. Weak Japanese honorifics (様, 君, 医師 ...), which also end
ordinary words (結節様, 外来看護師), count only after a common surname; 氏 before another noun (橋本氏病) is an eponym.
"""

import re
from collections.abc import Iterator

from megatron_jmed.corpus.privacy_scan import Scanned
from megatron_jmed.corpus.privacy_words import (
    ENGLISH_NOT_NAMES,
    JAPANESE_NOT_NAMES,
    JAPANESE_ROLES,
    KATAKANA_NOT_NAMES,
    NOT_NAME_ENDINGS,
    SURNAMES,
)

Span = tuple[int, int]

KANJI = "一-龥々〆ヶ﨑髙\U00020000-\U0003ffff"
LOOK_BACK = 24
LONGEST_GIVEN = 3
HONORIFICS = ("さん", "様", "先生", "氏", "くん", "ちゃん", "君", "殿", *JAPANESE_ROLES)
HONORIFICS_BY_FIRST = {first: [one for one in HONORIFICS if one[0] == first] for first, *_ in HONORIFICS}
HONORIFIC = re.compile("|".join(HONORIFICS))
STRONG = {"さん", "先生", "氏", "くん", "ちゃん"}
AFTER_WORD = re.compile(f"[{KANJI}ァ-ヶ]")
GOES_ON = {"さん": "ぽごぎざびみ", "くん": "しれ", "様": "な々"}  # さんぽ, くんしょう, 様な are other words
RUN = re.compile(f"[{KANJI}]{{1,10}}$")
SPACED = re.compile(f"([{KANJI}]{{1,5}}) ([{KANJI}]{{1,4}}|[ぁ-ん]{{2,4}}|[ァ-ヶー]{{2,5}})$")
KANA_GIVEN = re.compile(f"([{KANJI}]{{1,5}})((?![のはがともをにでやへ])[ぁ-ん]{{2,3}})$")
KATAKANA = re.compile("(?:[ァ-ヶー]{2,12}[・=]){0,3}[ァ-ヶー]{2,12}$")
LATIN = re.compile("(?:[A-Z][a-z]+ )?[A-Z][a-z]{2,}$")
LABELS_JA = (
    "患者", "保護者", "本人", "カナ", "被保険者", "氏名", "名前", "お名前", "フリガナ",
    "ふりがな", "署名", "記載者", "記録者", "主治医", "担当", "執刀医", "助手", "紹介医", "麻酔科医", "当直医", "キーパーソン",
)  # fmt: skip
LABEL_JA = re.compile(
    "(?:(?:患者|保護者|本人|カナ|被保険者)?(?:氏名|名前)|患者名|お名前|フリガナ|ふりがな|署名|記載者|記録者|"
    "(?P<doubtful>患者|主治医|担当医|担当看護師|執刀医|助手|紹介医|麻酔科医|当直医|キーパーソン|保護者))"
    f"(?: ?: *|は| +)(?P<name>[{KANJI}ぁ-んァ-ヶー・]{{1,10}}(?: (?![一-龥ぁ-ん]{{1,8}}:)[{KANJI}ぁ-んァ-ヶー]{{1,6}})?)"
)

WORD = r"(?:[A-Z]['’][A-Z][a-z]+|[A-Z][a-zà-ÿ]*[a-zà-ÿ](?:[A-Z][a-z]+)?|[A-Z]\.)(?:-[A-Z][a-z]+)*"
PARTICLE = r"(?:(?:[Vv]an|[Vv]on|der|den|[Dd]e|[Ll]a|[Ll]e|[Dd]i|[Dd]a|[Dd]el|bin|al|dos) ){0,2}"
NAME_EN = rf"{PARTICLE}{WORD}(?: {PARTICLE}{WORD}){{0,3}}"
TITLE = re.compile(
    rf"\b(?:Mrs?|Ms|Miss|Mx|Drs?|Prof|Professor|Sir|Dame)\b\.? ({NAME_EN})"
    rf"(?:(?<=[a-z]) and (?=[A-Z])(?!Mr|Ms|Dr)({NAME_EN}))?"
)
PLURAL_TITLE = re.compile(r"\bDrs\b\.? ")
LABEL_EN = re.compile(
    r"\b(?:(?:(?:[Pp]atient|[Mm]other|[Ff]ather|[Gg]uardian|[Ss]pouse)(?:['’]s)? )?(?:[Nn]ame|NAME)"
    r"|(?P<doubtful>[Pp]atient|PATIENT|Physician|Provider|Surgeon|Consultant|Nurse|Attending|Contact|Witness)"
    r"|(?:[Aa]ttending|[Pp]rimary [Cc]are|[Rr]eferring|[Tt]reating) [Pp]hysician|An(?:a)?esthesiologist|Emergency contact"
    r"|Next of kin|(?:Referred|Dictated|Reviewed|Signed|Transcribed|Prepared) by)"
    rf" ?: *(?:Drs?\.? |Mrs?\.? |Ms\.? )?(?P<name>[A-Z]{{2,}}, ?[A-Z]{{2,}}|{NAME_EN})"
)
NAMED = re.compile(
    rf"\b(?:[Mm]y name is|(?:(?<=patient )|(?<=man )|(?<=boy )|(?<=girl )|(?<=child ))named|"
    rf"(?:Referred|Dictated|Reviewed|Signed) by) ({NAME_EN})"
)
TITLES = ("Mr", "Ms", "Miss", "Mx", "Dr", "Prof", "Sir", "Dame")
LABELS_EN = (
    "Patient", "patient", "PATIENT", "Mother", "mother", "Father", "father", "Guardian", "guardian",
    "Spouse", "spouse", "Name", "name", "NAME", "Physician", "Provider", "Surgeon", "Consultant",
    "Nurse", "Attending", "attending", "Contact", "Witness", "Primary", "primary", "Referring", "referring",
    "Treating", "treating", "An", "Emergency", "Next", "Referred", "Dictated", "Reviewed", "Signed",
    "Transcribed", "Prepared",
)  # fmt: skip
NAMING = ("My name is", "my name is", "named ", "Referred by", "Dictated by", "Reviewed by", "Signed by")
DEGREE = re.compile(r", (?:M\.?D\.?|R\.?N\.?|Ph\.?D\.?|D\.?O\.?|MBBS|FRCP|MSN|DNP)(?![A-Za-z])(?! \d{5}|,? USA)")
DEGREES = (", MD", ", M.D", ", RN", ", R.N", ", PhD", ", Ph.D", ", DO", ", D.O", ", MBBS", ", FRCP", ", MSN", ", DNP")
ANCHORS = {
    LABEL_JA: LABELS_JA, HONORIFIC: HONORIFICS, TITLE: TITLES, LABEL_EN: LABELS_EN, NAMED: NAMING, DEGREE: DEGREES
}  # fmt: skip
BEFORE_DEGREE = re.compile(rf"(?<![A-Za-z'’-])({WORD}(?: {PARTICLE}{WORD}){{1,2}})$")


# ---- Japanese


def japanese_names(seen: Scanned) -> Iterator[Span]:
    """Yield names before honorifics and after labels."""
    for match in seen.matches(LABEL_JA):
        yield from _labelled_japanese(match)
    text = seen.text
    for place in seen.places(HONORIFIC):
        for honorific in HONORIFICS_BY_FIRST[text[place]]:
            if not text.startswith(honorific, place):
                continue
            after = place + len(honorific)
            start = _name_start(text, place, honorific, text[after : after + 1])
            if start is not None:
                yield start, place


def _labelled_japanese(match: re.Match[str]) -> Iterator[Span]:
    start, name = match.start("name"), match.group("name")
    honorific = HONORIFIC.search(name)
    name = name[: honorific.start()] if honorific else name
    name = re.split("(?:は|が|を|に|と|の|で|年齢|性別|生年|住所|電話|病棟|病室)", name)[0].rstrip(" ")
    first = name.split(" ")[0]
    known = _starts_with_surname(first) or (" " in name and len(first) <= 4 and not _is_word(first))
    by_sign = ":" in match.group() or match.group()[len(match.group()) - len(match.group("name")) - 1] == " "
    sure = not match.group("doubtful") and by_sign
    if len(name) > 1 and not _is_word(name) and (known or sure):
        yield start, start + len(name)


def _name_start(text: str, end: int, honorific: str, following: str) -> int | None:
    """Find where the name before an honorific begins; None where there is none."""
    another_noun = honorific not in {"さん", "先生", "くん", "ちゃん"} and following != "宅" and AFTER_WORD.match(following)
    if another_noun or (following and following in GOES_ON.get(honorific, "")):
        return None
    head = text[max(0, end - LOOK_BACK) : end]
    start = _kanji_start(head, honorific) if RUN.search(head) else _other_start(head, honorific)
    return None if start is None else end - len(head) + start


def _kanji_start(head: str, honorific: str) -> int | None:
    if spaced := SPACED.search(head):
        found = _surname_offset(spaced.group(1), whole=True)
        if found is not None:
            return spaced.start() + found
    match = RUN.search(head)
    run = match.group()  # type: ignore[union-attr]
    if run not in SURNAMES and _is_word(run):
        return None
    if honorific == "様" and len(run) == 1 and head[: match.start()].endswith("お"):  # type: ignore[union-attr]
        return None  # お星様, お月様
    found = _surname_offset(run)
    if found is not None:
        return match.start() + found  # type: ignore[union-attr]
    plain = honorific in STRONG and 2 <= len(run) <= 5
    return match.start() if plain else None  # type: ignore[union-attr]


def _other_start(head: str, honorific: str) -> int | None:
    """The name is in katakana or Latin letters, or has a given name in hiragana."""
    if (match := KANA_GIVEN.search(head)) and match.group(1) in SURNAMES and not _is_word(match.group(2)):
        return match.start()
    if (match := SPACED.search(head)) and match.group(1) in SURNAMES:
        return match.start()
    if (match := KATAKANA.search(head)) and honorific not in {"様", "君", "殿"}:
        before = head[: match.start()][-1:]
        name = match.group()
        good = not name.endswith(KATAKANA_NOT_NAMES) and not AFTER_WORD.match(before)
        return match.start() if good and len(name) < LOOK_BACK - 2 else None
    match = LATIN.search(head)
    return match.start() if match and honorific in STRONG | {"様"} else None


def _surname_offset(run: str, whole: bool = False) -> int | None:
    """Where in a run of kanji does a common surname start, with at most a given name behind it?"""
    for offset in range(len(run)):
        for length in (4, 3, 2, 1):
            surname, given = run[offset : offset + length], run[offset + length :]
            if len(surname) < length or surname not in SURNAMES or len(given) > (0 if whole else LONGEST_GIVEN):
                continue
            if (length == 1 and (offset or len(given) == 1)) or (given and _is_word(given)):
                continue
            return offset
    return None


def _starts_with_surname(name: str) -> bool:
    return any(name[:length] in SURNAMES for length in (4, 3, 2, 1) if len(name) >= length)


def _is_word(run: str) -> bool:
    """Say whether a run of kanji or kana is an ordinary word or role, not a name."""
    return run in JAPANESE_NOT_NAMES or run.endswith(NOT_NAME_ENDINGS) or run.startswith(("不", "未", "匿名", "非公開"))


# ---- English


def english_names(seen: Scanned) -> Iterator[Span]:
    """Yield names after titles and labels and before degrees."""
    for match in seen.matches(TITLE):
        yield from _trimmed(match, 1)
        if match.group(2) and PLURAL_TITLE.match(match.group()):
            yield from _trimmed(match, 2)
    for match in seen.matches(LABEL_EN):
        num_words = 2 if match.group("doubtful") == "Patient" or match.group("doubtful") == "Contact" else 1
        yield from _trimmed(match, "name", num_words)
    for match in seen.matches(NAMED):
        yield from _trimmed(match, 1)
    for match in seen.matches(DEGREE):
        head = seen.text[max(0, match.start() - 60) : match.start()]
        if name := BEFORE_DEGREE.search(head):
            shift = match.start() - len(head)
            words = name.group(1).split(" ")
            if not ENGLISH_NOT_NAMES.intersection(words):
                yield name.start(1) + shift, name.end(1) + shift


def _trimmed(match: re.Match[str], group: int | str, min_words: int = 1) -> Iterator[Span]:
    """Yield a name up to the first word that cannot be part of one, without a possessive or full stop."""
    start, name = match.start(group), match.group(group)
    if re.fullmatch(r"[A-Z]{2,}, ?[A-Z]{2,}", name):
        yield start, start + len(name)
        return
    words = []
    for word in name.split(" "):
        if word in ENGLISH_NOT_NAMES:
            break
        words.append(word)
    kept = " ".join(words)
    if re.fullmatch(r"(?:[A-Z]\. ?)*", kept) or len(words) < min_words:
        return
    yield start, start + len(kept)
