"""The blends: which token sets a recipe reads, in what proportion. A new source or mixture is a change to this file.

Paths are relative to the folder a run is started in. A weight is the source's share of the samples drawn (not of its
own tokens); one of weight 0 is only validated: add general Japanese and English texts so, to see what medicine makes the
model forget. `num_tokens` is a declared size, used for planning until the token set exists.
"""

from megatron_jmed.config import SourceConfig


def tiny_ja_en() -> tuple[SourceConfig, ...]:
    """Half Japanese, half English, from the invented texts of `examples/data`."""
    return (
        SourceConfig(name="texts_ja", path="runs/tiny/tokens/texts_ja", weight=0.5, lang="ja"),
        SourceConfig(name="texts_en", path="runs/tiny/tokens/texts_en", weight=0.5, lang="en"),
    )


def sip_medical() -> tuple[SourceConfig, ...]:
    """A medical blend of 79.6B tokens in the kinds of text that the SIP corpus lists.

    The kinds are published (Kobayashi et al., LREC 2026), their shares are not: sizes and weights here are our
    assumption, to be replaced by what `tools/tokenize_corpus.py` wrote into the manifests.
    """
    kinds = (  # name, lang, billions of tokens
        ("papers_en", "en", 34.0),
        ("abstracts_en", "en", 9.0),
        ("papers_ja", "ja", 11.0),
        ("abstracts_ja", "ja", 4.0),
        ("medical_web_ja", "ja", 15.0),
        ("research_reports_ja", "ja", 4.0),
        ("textbooks_ja", "ja", 1.0),
        ("package_inserts_ja", "ja", 0.8),
        ("guidelines_ja", "ja", 0.7),
        ("exam_train_ja_en", "ja", 0.1),
    )
    return tuple(
        SourceConfig(name=name, path=f"tokens/{name}", weight=billions, lang=lang, num_tokens=round(billions * 1e9))
        for name, lang, billions in kinds
    )


def tiny_chat() -> tuple[SourceConfig, ...]:
    """The invented conversations of `examples/data/chat` (tools/tokenize_chat.py)."""
    return (SourceConfig(name="chat", path="runs/tiny_sft/tokens", weight=1.0, lang="ja"),)


def instructions() -> tuple[SourceConfig, ...]:
    """Japanese and English instructions, and medical questions, 150M tokens in all. Sizes are our assumption, to be replaced by
    what `tools/tokenize_chat.py` wrote into the manifests."""
    kinds = (("instructions_ja", "ja", 80), ("instructions_en", "en", 50), ("medical_questions_ja", "ja", 20))  # millions of tokens
    return tuple(SourceConfig(name=name, path=f"tokens/{name}", weight=millions, lang=lang, num_tokens=millions * 1_000_000)
                 for name, lang, millions in kinds)
