"""Which lines of a text are nothing but the page's furniture?

In: a text in one spelling. Out: the text without such lines, and how many they were. A line is furniture if a pattern of
BOILERPLATE matches all of it. Invariant: what is left has no such line.
"""

import re
import string

from megatron_jmed.corpus.scan import finder
from megatron_jmed.corpus.spelling import blank_space

MAX_BOILERPLATE_CHARACTERS = 120
# Each pattern with words of which one is in every line that it matches, in lower case: it is tried on such lines only.
BOILERPLATE: dict[str, tuple[str, ...]] = {
    r"(続きを|もっと)(読む|見る)": ("続きを読む", "続きを見る", "もっと読む", "もっと見る"),
    r"(この)?(ページ|記事)の?(先頭|上部|トップ|TOP)[へに](戻る)?": (
        *("先頭へ", "先頭に", "上部へ", "上部に", "トップへ", "トップに", "topへ", "topに"),
    ),
    r"(ホーム|トップ(ページ)?|一覧|目次)[へに]戻る": ("へ戻る", "に戻る"),
    r"(前|次)の(ページ|記事)([へに](戻る|進む)?)?": ("前のページ", "次のページ", "前の記事", "次の記事"),
    r"(本文|メイン ?コンテンツ|コンテンツ)[へに]?(移動|スキップ)(する)?": (
        *("本文移動", "本文へ移動", "本文に移動", "本文スキップ", "本文へスキップ", "本文にスキップ"),
        *("コンテンツ移動", "コンテンツへ移動", "コンテンツに移動"),
        *("コンテンツスキップ", "コンテンツへスキップ", "コンテンツにスキップ"),
    ),
    r"(この(ページ|記事)を)?(印刷|シェア|ツイート|ブックマーク)する": (
        *("印刷する", "シェアする", "ツイートする", "ブックマークする"),
    ),
    r"(サイトマップ|プライバシー ?ポリシー|個人情報保護方針|利用規約|クッキーポリシー|スポンサー(ド)?リンク)": (
        *("サイトマップ", "プライバシーポリシー", "プライバシー ポリシー", "個人情報保護方針", "利用規約", "クッキーポリシー"),
        *("スポンサーリンク", "スポンサードリンク"),
    ),
    r"(お問い?合わ?せ|資料請求|ログイン|新規(会員)?登録|会員登録)は(こちら|コチラ)(から)?": ("はこちら", "はコチラ"),
    r".{0,60}(無断(転載|複製|使用).{0,20}(禁止|禁じ|お断り).{0,10})": ("無断転載", "無断複製", "無断使用"),
    r"((copyright|©|\(c\))[ ,]*)+(©|\(c\)|\d{4}|by\b).{0,100}": ("copyright", "©", "(c)"),
    r".{0,80}all rights reserved\.?": ("all rights reserved",),
    r"skip to (the )?(main )?(content|navigation)": ("skip to ",),
    r"(back|return|go) to (the )?top( of (the )?page)?": ("to top", "to the top"),
    r"(share|print|bookmark|email|tweet) this( page| article)?": (
        *("share this", "print this", "bookmark this", "email this", "tweet this"),
    ),
    r"(click here|read more|learn more|continue reading|show more|see more)( (to|about|on) .{1,60})?": (
        *("click here", "read more", "learn more", "continue reading", "show more", "see more"),
    ),
    r"(privacy policy|terms (of (use|service)|(and|&) conditions)|cookie (policy|settings|preferences)|site ?map)": (
        *("privacy policy", "terms of use", "terms of service", "terms and conditions", "terms & conditions"),
        *("cookie policy", "cookie settings", "cookie preferences", "sitemap", "site map"),
    ),
    r"(subscribe|sign up)( now| here)? (to|for) (our|the) .{0,40}(newsletter|mailing list|updates)": (
        *("newsletter", "mailing list", "updates"),
    ),
    r"(follow|find|like) us on .{1,40}": (" us on ",),
    r"(this (site|website)|we) uses? cookies.{0,80}": ("use cookies", "uses cookies"),
    r"(advertisement|sponsored (content|links?)|loading(\.\.\.|…)?)": (
        *("advertisement", "sponsored content", "sponsored link", "loading"),
    ),
}
BOILERPLATE_LINE = re.compile(rf"\W*(?:{'|'.join(BOILERPLATE)})[\s.。>»›→＞|]*", re.IGNORECASE)
# What re.IGNORECASE takes for the same letter.
LETTERS_ALIKE = {letter: letter + letter.upper() for letter in string.ascii_lowercase} | {"i": "iIİı", "k": "kK\u212a", "s": "sSſ"}
BOILERPLATE_WORDS = finder([[word for words in BOILERPLATE.values() for word in words]], LETTERS_ALIKE)


def drop_boilerplate(text: str) -> tuple[str, int]:
    """The text without its boilerplate lines, and how many they were."""
    [places] = BOILERPLATE_WORDS(text)
    if not places:
        return text, 0
    kept, num_dropped, done, end = [], 0, 0, -1
    for place in places:
        if place < end:
            continue
        start, end = text.rfind("\n", 0, place) + 1, text.find("\n", place)
        end = len(text) if end < 0 else end
        if end - start <= MAX_BOILERPLATE_CHARACTERS and BOILERPLATE_LINE.fullmatch(text, start, end):
            kept.append(text[done:start])
            num_dropped, done = num_dropped + 1, end + 1
    return (blank_space("".join((*kept, text[done:]))) if num_dropped else text), num_dropped
