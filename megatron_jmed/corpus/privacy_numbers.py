"""Where does a clinical text hold an address, a contact, a date of birth or a number that stands for one person?

In: text with its ASCII-like wide characters folded (same length). Out: (kind, start, end), in order of trust: what an
earlier finder claims, a later one cannot. Invariant: a number counts only by its form (e-mail, 090-...), by a label
(MRN, 記号) or by a check digit; a date only in words about birth. Links of DOIs and of public bodies
(.gov, .go.jp, .int; PubMed among them) are references, not identifiers.

Check digits: My Number, 12 digits: 11 - (sum of P_n * Q_n mod 11), 0 where that is above 9; P_n the n-th digit from the
right (check digit not counted), Q_n = n + 1 up to n = 6, then n - 5 (ordinance 85 of 2014, article 5). Insurer number
(保険者番号), 8 digits: weights 2, 1, 2, 1 ... from the right, digits of the products summed, 10 - (sum mod 10).
"""

import re
import string
from collections.abc import Iterator

from megatron_jmed.corpus.privacy_scan import Scanned

Found = tuple[str, int, int]

NOT_BEFORE = r"(?<![0-9A-Za-z.\-/+_])"
NOT_AFTER = r"(?![0-9A-Za-z]|[\-./][0-9A-Za-z])"
IS = r"(?: ?(?:は|が|:|=|#|\(|is|was|[Nn]umber|[Nn]o\.?|\.) ?){0,3}[ \t]*"

HAS_DIGIT = re.compile(r"[\d一二三四五六七八九十]")
DOMAIN = re.compile(r"@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
LOCAL_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+'-]{0,63}$")
URL = re.compile(r"(?:[Hh][Tt][Tt][Pp][Ss]?://|[Ww][Ww][Ww]\.)[A-Za-z0-9\[][!#-;=?-\[\]_a-z~|]*")
REFERENCE_URL = re.compile(r"(?i)(?:https?://)?[a-z0-9.-]*?(?:doi\.org|\.gov|\.go\.jp|\.int)(?![a-z0-9.-]*[a-z0-9])")

PHONE_JAPAN = re.compile(NOT_BEFORE + r"(?:\(0\d{1,4}\) ?|0\d{1,4}[-( ])\d{1,4}[-) ]\d{3,4}" + NOT_AFTER)
MOBILE = re.compile(NOT_BEFORE + r"0[5789]0\d{8}" + NOT_AFTER)
PHONE_UK = re.compile(NOT_BEFORE + r"0(?:2\d \d{4} \d{4}|[17]\d{3} \d{6})" + NOT_AFTER)
PHONE_US = re.compile(
    NOT_BEFORE + r"(?:\+?1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([-.]))[2-9]\d\d[-.]\d{4}" + NOT_AFTER
)
PHONE_ABROAD = re.compile(r"(?<![0-9A-Za-z.\-/])\+[1-9]\d{0,2}(?:[- .]?\(?\d{1,4}\)?){2,5}" + NOT_AFTER)
PHONE_LABEL = re.compile(
    r"(?:TEL|Tel|Telephone|telephone|[Pp]hone|PHONE|FAX|Fax|Mobile|Cell|Pager|Call|Text|電話|携帯|連絡先)(?:番号)?" + IS
    + r"(\+?\(?\d[\d()\-. ]{5,16}\d)" + NOT_AFTER
)  # fmt: skip

POSTCODE = re.compile(r"(?:〒 ?|郵便番号" + IS + r"〒?)(\d{3}[-ー]?\d{4})(?!\d)")
UK_CODE = r"[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}"
POSTCODE_EN = re.compile(r"\b(?:ZIP|[Zz]ip|[Pp]ostal|[Pp]ost)(?: ?[Cc]ode)?" + IS + rf"(\d{{5}}(?:-\d{{4}})?|{UK_CODE}){NOT_AFTER}")
STREET = (
    "Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Court|Terrace|Crescent|Parkway|Close|"
    r"(?:Way|Place|Square)(?=[,.;)\n]|$| (?:at|on|in|and|by)\b)"
)
ADDRESS_EN = re.compile(
    rf"(?:\b(?:Flat|Apt|Unit) \w+, )?{NOT_BEFORE}\d{{1,5}}[A-Z]? "
    rf"(?!(?:Supreme|Superior|District) )(?:[A-Z][A-Za-z'’-]+ ){{1,3}}?(?:{STREET})\b"
    r"(?! [A-Z])(?:,? (?:Apt|Suite|Unit|Room)\.? \w+)?(?:, [A-Z][a-z]+(?: [A-Z][a-z]+)?)?(?:, [A-Z]{2}\b)?"
    r"|\bP\.?O\.? Box \d+(?:, [A-Z][a-z]+(?: [A-Z][a-z]+)?)?(?:, [A-Z]{2}\b)?"
)
CODE_AFTER_ADDRESS = re.compile(rf",? (\d{{5}}(?:-\d{{4}})?|{UK_CODE})(?![0-9A-Za-z])")
PREFECTURES = (
    "北海道|東京都|京都府|大阪府|(?:青森|岩手|宮城|秋田|山形|福島|茨城|栃木|群馬|埼玉|千葉|神奈川|新潟|富山|石川|福井|山梨|長野|岐阜|静岡|愛知|三重|"
    "滋賀|兵庫|奈良|和歌山|鳥取|島根|岡山|広島|山口|徳島|香川|愛媛|高知|福岡|佐賀|長崎|熊本|大分|宮崎|鹿児島|沖縄)県"
)
BLOCK = re.compile(r"(?:\d{1,4}|[一二三四五六七八九十]{1,3})丁目|\d{1,5}番地?(?!目)|\d{1,4}[-ー]\d{1,4}(?![年月日人名歳%回度])")
PLACE = "一-龥々ァ-ヶー"
BEFORE_BLOCK = re.compile(
    f"(?:(?:{PREFECTURES})[さつくばいたま{PLACE}]{{1,14}}|(?:さいたま|つくば|いわき|[一-龥ヶ]{{1,5}})[市区町村郡][{PLACE}]{{0,14}})$"
)
AFTER_BLOCK = re.compile(
    r"(?:丁目|番地|番|号室|号|の(?=\d)|[-ー](?=\d)|\d|[一二三四五六七八九十]{1,3}(?=丁目|番|号))*"
    rf"(?: ?[{PLACE}]{{1,12}}?(?:マンション|ハイツ|コーポ|アパート|ビル|レジデンス|メゾン|荘|寮)(?: ?\d{{1,4}}(?:号室?)?)?)?"
)
ADDRESS_LABEL = re.compile(
    rf"(?:住所|居住地|転居先)[は: が]{{1,3}}"
    rf"((?:{PREFECTURES})[さつくばいたま{PLACE}]{{1,14}}?[市区町村]+(?:[{PLACE}]{{1,5}}?区)?)"
)

ERA = r"(?:明治|大正|昭和|平成|令和|[MTSHR]\.?)"
YEAR_JA = rf"(?:{ERA} ?(?:\d{{1,2}}|元|[一二三四五六七八九十]{{1,3}})|(?:18|19|20)\d\d)"
NUMBER = r"(?:\d{1,2}|[一二三四五六七八九十]{1,3})"
DATE_JA = rf"{YEAR_JA} ?(?:年 ?{NUMBER} ?月 ?{NUMBER} ?日|[-/.]\d{{1,2}}[-/.]\d{{1,2}})"
MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
DAY = r"(?:the )?\d{1,2}(?:st|nd|rd|th)?"
DATE_EN = (
    rf"(?:{DAY}[ -](?:of )?{MONTH}\.?,?(?:[ -]\d{{4}})?|"
    rf"{MONTH}\.? {DAY}(?:,? \d{{4}})?|\d{{1,2}}[/.-]\d{{1,2}}[/.-](?:\d{{4}}|\d{{2}}))"
)
BIRTH_LABEL = re.compile(
    r"(?:生年月日|誕生日|出生日|出生年月日|DOB|D\.O\.B\.?|[Dd]ate [Oo]f [Bb]irth|[Bb]irth ?date|[Bb]irthday|\b[Bb]orn(?: on)?)"
    rf"{IS}({DATE_JA}|{DATE_EN}|{NUMBER}月{NUMBER}日)(?!\d)"
)
BIRTH_AFTER = re.compile(
    rf"(?<!\d)({DATE_JA})"
    rf"(?=\)?(?:生まれ|生(?![\w])|生の|生、)|に[^。\d\n]{{0,15}}(?:生まれ|出生し))"
)

TWELVE = re.compile(NOT_BEFORE + r"\d{4}([- ]?)\d{4}\1\d{4}" + NOT_AFTER)
NATIONAL_LABEL = re.compile(
    r"(?:マイナンバー|個人番号|My Number|MY NUMBER)\)?(?:カード)?(?:の番号)?\)?" + IS
    + r"(\d{4}([- ]?)\d{4}\2\d{4})(?!\d)"
)  # fmt: skip
SSN = re.compile(NOT_BEFORE + r"\d{3}-\d{2}-\d{4}" + NOT_AFTER)
NATIONAL_LABEL_EN = re.compile(
    r"\b(?:(?:SSN|[Ss]ocial [Ss]ecurity)" + IS + r"(\d{3}[- ]?\d{2}[- ]?\d{4})|NHS" + IS + r"(\d{3}[- ]?\d{3}[- ]?\d{4}))(?!\d)"
)
CODE = r"[A-Z]{0,4}[-.]?\d(?:[0-9A-Z]|-(?=[0-9A-Z])){1,14}"
INSURANCE_LABEL = re.compile(
    r"(?:保険者番号|保険証番号|保険者証番号|被保険者番号|被保険者証番号|受給者番号|負担者番号|(?:医療証|記号)・番号)"
    + IS
    + r"([A-Z]{0,2}\d[\d\-・]{3,13})(?![0-9])"
)
INSURANCE_PAIR = re.compile(r"記号" + IS + r"(\d[\d\-]{0,9})[ 、,・]{1,2}番号" + IS + r"(\d[\d\-]{0,9})")
INSURANCE_NEAR = re.compile(r"保険[^\d\n。]{0,10}(\d{8})(?!\d)")
INSURANCE_LABEL_EN = re.compile(
    r"\b(?:(?:[Hh]ealth )?[Ii]nsurance (?:ID|id|[Nn]umber|[Nn]o\.?|[Pp]olicy)|"
    r"(?:[Mm]ember|[Ss]ubscriber|Medicaid|Medicare|"
    rf"[Bb]eneficiary|[Gg]roup|[Pp]olicy) (?:ID|[Nn]umber|[Nn]o\b\.?|#))"
    rf"{IS}((?=[A-Z\-]*\d)[A-Z0-9](?:[A-Z0-9]|-(?=[A-Z0-9])){{4,15}})(?![A-Za-z0-9])"
)
RECORD_LABEL = re.compile(
    r"(?:(?:カルテ|診療録)(?: ?(?:番号|No\.?|NO\.?|ID))?|患者(?: ?ID|番号)|診察券番号|登録ID|\bMRN|"
    r"(?<![A-Za-z0-9] )(?<![A-Za-z0-9\-])ID(?=:))"
    rf"{IS}({CODE}){NOT_AFTER}"
)
RECORD_LABEL_EN = re.compile(
    r"\b(?:MRN|[Mm]edical [Rr]ecord (?:[Nn]umber|[Nn]o\.?|#)|[Cc]hart (?:[Nn]umber|[Nn]o\.?|#)|"
    r"[Pp]atient (?:ID|[Ii]dentifier|[Nn]umber)|(?:[Hh]ospital|[Rr]ecord|[Ee]ncounter) (?:[Nn]umber|[Nn]o\.?)(?=[ :])"
    rf"){IS}({CODE}|[A-Z]{{2,4}}-\d{{3,10}}){NOT_AFTER}"
)
# A pathology laboratory's, such as S21-00456; a sequence database's (AF123456) is no identifier of a patient.
ACCESSION = re.compile(rf"[Aa]ccession (?:[Nn]umber|[Nn]o\.?){IS}([A-Z]{{1,3}}\d\d-\d{{3,6}}){NOT_AFTER}")

NUMBER_RUN = re.compile(r"[+(\d][\d()\-. ]{8,}")
STREET_NUMBER = re.compile(r"\d[A-Z]? [A-Z][A-Za-z'’-]+ ")
BLOCK_SIGN = re.compile(r"[\d一二三四五六七八九十](?:丁目|番|[-ー]\d)")

ANCHORS = {
    BIRTH_LABEL: ("生年月日", "誕生日", "出生", "DOB", "D.O.B", "Date", "date", "Birth", "birth", "Born", "born"),
    NATIONAL_LABEL: ("マイナンバー", "個人番号", "My Number", "MY NUMBER"),
    NATIONAL_LABEL_EN: ("SSN", "Social", "social", "NHS"),
    INSURANCE_LABEL: ("保険者", "保険証", "被保険者", "受給者番号", "負担者番号", "医療証", "記号"),
    INSURANCE_PAIR: ("記号",),
    INSURANCE_NEAR: ("保険",),
    INSURANCE_LABEL_EN: (
        "Health", "health", "Insurance", "insurance", "Member", "member", "Subscriber", "subscriber", "Medicaid",
        "Medicare", "Beneficiary", "beneficiary", "Group", "group", "Policy", "policy",
    ),
    RECORD_LABEL: ("カルテ", "診療録", "患者", "診察券番号", "登録ID", "MRN", "ID:"),
    RECORD_LABEL_EN: (
        "MRN", "Medical", "medical", "Chart", "chart", "Patient", "patient", "Hospital", "hospital", "Record", "record",
        "Encounter", "encounter",
    ),
    ACCESSION: ("Accession", "accession"),
    PHONE_LABEL: (
        "TEL", "Tel", "telephone", "Phone", "phone", "PHONE", "FAX", "Fax", "Mobile", "Cell", "Pager", "Call", "Text",
        "電話", "携帯", "連絡先",
    ),
    POSTCODE: ("〒", "郵便番号"),
    POSTCODE_EN: ("ZIP", "Zip", "zip", "Post", "post"),
    ADDRESS_LABEL: ("住所", "居住地", "転居先"),
    URL: ("http", "HTTP", "Http", "www.", "WWW.", "Www."),
    DOMAIN: ("@",),
    BIRTH_AFTER: ("生",),  # within the match, unlike the others
    ADDRESS_EN: (" Box ",),  # so is this
    STREET_NUMBER: tuple(word for letter in string.ascii_uppercase for word in (f"0 {letter}", f"0{letter} ")),
    BLOCK_SIGN: tuple(f"{digit}{sign}" for digit in "0一二三四五六七八九十" for sign in ("丁目", "番", "-0", "ー0")),
}  # fmt: skip


def find_numbers(seen: Scanned, japanese: bool) -> Iterator[Found]:
    """Yield everything but names, the most trusted first; the Japanese finders only where `japanese`."""
    yield from _emails(seen)
    yield from _urls(seen)
    if HAS_DIGIT.search(seen.text):
        yield from _with_digits(seen, japanese)
    if japanese:  # last, so that an address with its block numbers is taken whole
        for match in seen.matches(ADDRESS_LABEL):
            yield "address", match.start(1), match.end(1)


def _with_digits(seen: Scanned, japanese: bool) -> Iterator[Found]:
    yield from _labelled("birthdate", BIRTH_LABEL, seen)
    yield from _labelled("national_id", NATIONAL_LABEL_EN, seen)
    yield from _labelled("insurance", INSURANCE_LABEL_EN, seen)
    yield from _labelled("record", RECORD_LABEL_EN, seen)
    yield from _labelled("record", ACCESSION, seen)
    yield from _labelled("record", RECORD_LABEL, seen)
    stretches = [NUMBER_RUN.finditer(seen.text, start, end) for start, end in seen.number_stretches]
    runs = [(match.start(), match.end() + 2) for stretch in stretches for match in stretch]
    yield from _national_ids(seen, runs)
    if japanese:
        yield from _japanese(seen)
    yield from _phones(seen, runs)
    yield from _labelled("postcode", POSTCODE_EN, seen)
    yield from _english_addresses(seen)


def _labelled(kind: str, pattern: re.Pattern[str], seen: Scanned) -> Iterator[Found]:
    """Yield the groups of a pattern that hold a digit."""
    for match in seen.matches(pattern):
        for group in range(1, pattern.groups + 1):
            value = match.group(group)
            if value and len(value) > 1 and HAS_DIGIT.search(value):
                yield kind, match.start(group), match.end(group)


def _japanese(seen: Scanned) -> Iterator[Found]:
    for place in seen.places(BIRTH_AFTER):
        for match in BIRTH_AFTER.finditer(seen.text, max(0, place - 40), place + 4):
            yield "birthdate", match.start(), match.end()
    yield from _labelled("insurance", INSURANCE_LABEL, seen)
    yield from _labelled("insurance", INSURANCE_PAIR, seen)
    for match in seen.matches(INSURANCE_NEAR):
        if is_insurer_number(match.group(1)):
            yield "insurance", match.start(1), match.end(1)
    yield from _labelled("postcode", POSTCODE, seen)
    yield from _japanese_addresses(seen)


def _japanese_addresses(seen: Scanned) -> Iterator[Found]:
    text = seen.text
    for sign in seen.matches(BLOCK_SIGN, overlapping=False):
        block = BLOCK.search(text, max(0, sign.start() - 4), sign.end() + 8)
        if not block:
            continue
        head = text[max(0, block.start() - 30) : block.start()]
        place = BEFORE_BLOCK.search(head)
        if place and not re.search("病院|大学|学会|会社", place.group()):
            end = AFTER_BLOCK.match(text, block.end())
            yield "address", block.start() - len(head) + place.start(), end.end() if end else block.end()


def _emails(seen: Scanned) -> Iterator[Found]:
    for match in seen.matches(DOMAIN, overlapping=False):
        head = seen.text[max(0, match.start() - 64) : match.start()]
        if local := LOCAL_PART.search(head):
            yield "email", match.start() - len(local.group()), match.end()


def _urls(seen: Scanned) -> Iterator[Found]:
    for match in seen.matches(URL, overlapping=False):
        url = match.group().rstrip(".,;:!?'\"")
        while url.endswith(")") and url.count("(") < url.count(")"):
            url = url[:-1].rstrip(".,;:!?'\"")
        if not REFERENCE_URL.match(url):
            yield "url", match.start(), match.start() + len(url)


def _phones(seen: Scanned, runs: list[tuple[int, int]]) -> Iterator[Found]:
    text = seen.text
    for start, end in runs:
        for pattern in (PHONE_ABROAD, PHONE_US, PHONE_UK, MOBILE):
            for match in pattern.finditer(text, start, end):
                if pattern is not PHONE_ABROAD or 10 <= _num_digits(match.group()) <= 15:
                    yield "phone", match.start(), match.end()
        for match in PHONE_JAPAN.finditer(text, start, end):
            digits = re.sub(r"\D", "", match.group())
            mobile = len(digits) == 11 and re.match("0[5789]0", digits)
            if mobile or (len(digits) == 10 and " " not in match.group()):
                yield "phone", match.start(), match.end()
    for match in seen.matches(PHONE_LABEL):
        number = match.group(1)
        if 7 <= _num_digits(number) <= 15 and not re.fullmatch(r"(?:19|20)\d\d ?- ?(?:19|20)\d\d", number):
            yield "phone", match.start(1), match.end(1)


def _national_ids(seen: Scanned, runs: list[tuple[int, int]]) -> Iterator[Found]:
    for match in seen.matches(NATIONAL_LABEL):
        yield "national_id", match.start(1), match.end(1)
    for start, end in runs:
        for match in TWELVE.finditer(seen.text, start, end):
            if is_my_number(re.sub(r"\D", "", match.group())):
                yield "national_id", match.start(), match.end()
        for match in SSN.finditer(seen.text, start, end):
            yield "national_id", match.start(), match.end()


def _english_addresses(seen: Scanned) -> Iterator[Found]:
    text = seen.text
    starts = [max(0, match.start() - 12) for match in seen.matches(STREET_NUMBER)]
    starts += [max(0, place - 6) for place in seen.places(ADDRESS_EN)]
    for start in starts:
        match = ADDRESS_EN.search(text, start, start + 120)
        if match:
            yield "address", match.start(), match.end()
            if code := CODE_AFTER_ADDRESS.match(text, match.end()):
                yield "postcode", code.start(1), code.end(1)


def _num_digits(text: str) -> int:
    return sum(character.isdigit() for character in text)


def is_my_number(digits: str) -> bool:
    """Check the 12th digit of a My Number; the formula stands above."""
    total = sum(int(p) * (n + 1 if n <= 6 else n - 5) for n, p in enumerate(reversed(digits[:11]), 1))
    check = 11 - total % 11
    return len(digits) == 12 and int(digits[11]) == (0 if check > 9 else check)


def is_insurer_number(digits: str) -> bool:
    """Check the last digit of an insurer number (保険者番号, 8 or 6 digits); the formula stands above."""
    products = (int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits[:-1])))
    return len(digits) in (6, 8) and (sum(_digit_sum(product) for product in products) + int(digits[-1])) % 10 == 0


def _digit_sum(product: int) -> int:
    return product // 10 + product % 10
