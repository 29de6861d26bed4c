"""How is a wanted blend written down, and how large are its sources?

In: a plan (TOML) and the token sets that it names, where they exist. Out: a `Plan` and its `Source`s for blend.py.
Invariant: every target of a plan that passes both steps has sources that could meet it; everything wrong with a step
is said at once, each unknown word with the nearest right one.

## A plan

    # 79.6B tokens of medical text, with general text replayed so that nothing is forgotten
    total_tokens = 79_600_000_000
    valid_ratio = 0.01               # as data.valid_ratio of the run: this tail of every source is not trained on
    max_epochs = 4                   # for every source without its own
    min_general = 0.1                # at least a tenth of what is read comes from the domain `general`
    general_domain = "general"       # (the default)

    [domains]                        # a number, or a range; a domain that is not named is free
    medical = [0.75, 0.9]

    [langs]
    ja = [0.45, 0.60]
    en = 0.45

    [groups]                         # language and origin: text by machine translation counts apart, as "ja+mt"
    "ja+mt" = [0.0, 0.2]

    [[sources]]
    name = "papers_en"
    path = "tokens/papers_en"        # a token set; until it exists, num_tokens is what is planned with
    num_tokens = 34e9
    lang = "en"                      # left out: as counted in the token set, which may hold several
    domain = "medical"

    [[sources]]
    name = "textbooks_ja"
    path = "tokens/textbooks_ja"
    num_tokens = 1e9
    lang = "ja"
    domain = "medical"
    max_epochs = 8                   # small and precious

    [[sources]]
    name = "medical_web_ja"
    path = "tokens/medical_web_ja"
    num_tokens = 15e9
    lang = "ja"
    domain = "medical"

    [[sources]]
    name = "wiki_ja"
    path = "tokens/wiki_ja"
    num_tokens = 30e9
    lang = "ja"
    domain = "general"

    [[sources]]
    name = "papers_translated_ja"
    path = "tokens/papers_translated_ja"
    num_tokens = 10e9
    lang = "ja"
    domain = "medical"
    origin = "machine_translated"    # left out: as the token set says, else "original"
"""

import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from megatron_jmed.corpus.token_set import load_token_set
from megatron_jmed.errors import CorpusError

TOLERANCE = 1e-6
Origin = Literal["original", "machine_translated"]


def _ordered(share: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= share[0] <= share[1] <= 1:
        raise ValueError("a share is a number from 0 to 1, or a range [least, most] of two such numbers")
    return share


Share = Annotated[tuple[float, float], AfterValidator(_ordered),
                  BeforeValidator(lambda v: (v, v) if isinstance(v, int | float) else v)]


class _Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceWords(_Words):
    """One source of a plan, as written."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    domain: str = Field(min_length=1)
    lang: str = ""
    num_tokens: int | None = Field(None, gt=0)
    max_epochs: float | None = Field(None, gt=0)
    origin: Origin | None = None


class Plan(_Words):
    """A blend that is wanted, as written."""

    total_tokens: int = Field(gt=0)
    sources: tuple[SourceWords, ...] = Field(min_length=1)
    valid_ratio: float = Field(0.01, ge=0, lt=0.5)
    max_epochs: float | None = Field(None, gt=0)
    min_general: float = Field(0.0, ge=0, le=1)
    general_domain: str = "general"
    domains: dict[str, Share] = {}
    langs: dict[str, Share] = {}
    groups: dict[str, Share] = {}


def group_of(lang: str, origin: Origin) -> str:
    """What the mixture study calls text of one language and origin: "ja", or "ja+mt" by machine translation."""
    return f"{lang}+mt" if origin == "machine_translated" else lang


@dataclass(frozen=True)
class Source:
    """A source with its size; `langs` adds up to 1."""

    name: str
    path: str
    domain: str
    langs: dict[str, float]
    num_tokens: int
    train_tokens: float  # without the validation share
    max_epochs: float  # infinity: no cap
    is_declared: bool  # the token set does not exist yet
    origin: Origin = "original"

    @property
    def groups(self) -> dict[str, float]:
        """Its shares by language and origin; they add up to 1."""
        return {group_of(lang, self.origin): share for lang, share in self.langs.items()}


def load_plan(path: str | Path, total_tokens: int | None = None) -> Plan:
    """Read a plan; CorpusError with every unknown word and wrong value at once. `total_tokens` replaces the budget."""
    path = Path(path)
    try:
        words = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file; examples/data/blend.toml is a plan to begin with") from None
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from None
    if total_tokens is not None:
        words["total_tokens"] = total_tokens
    try:
        plan = Plan.model_validate(words)
    except ValidationError as error:
        raise refusal(str(path), [_explain(e) for e in error.errors()]) from None
    if found := _contradictions(plan):
        raise refusal(str(path), found)
    return plan


def _explain(error: Any) -> str:
    *parents, word = error["loc"]
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = (SourceWords if "sources" in parents else Plan).model_fields
        close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
        return f"{where}: no such word" + (f", did you mean {close[0]!r}?" if close else f"; words: {', '.join(known)}")
    if error["type"] == "missing":
        return f"{where}: must be given"
    return f"{where}={error['input']!r}: {error['msg']}"


def _contradictions(plan: Plan) -> list[str]:
    """What cannot be right whatever the sizes are."""
    names, domains = [s.name for s in plan.sources], {s.domain for s in plan.sources}
    found = [f"the name {name!r} is used twice; every source needs its own"
             for name in sorted({name for name in names if names.count(name) > 1})]
    for word, asked in {**{f"domains.{d}": d for d in plan.domains},
                        **({"general_domain": plan.general_domain} if plan.min_general else {})}.items():
        if asked not in domains:
            found.append(f"{word}: no source has the domain {asked!r}; the sources' domains are {', '.join(sorted(domains))}")
    for word, shares in (("domains", plan.domains), ("langs", plan.langs), ("groups", plan.groups)):
        least = math.fsum(lo for lo, _ in shares.values())
        if least > 1 + TOLERANCE:
            found.append(f"{word}: the least shares add up to {percent(least)}; lower some by {percent(least - 1)} in all")
    return found


def refusal(where: str, found: list[str]) -> CorpusError:
    if len(found) == 1:
        return CorpusError(f"{where}: {found[0]}")
    return CorpusError(f"{where}: {len(found)} problems\n" + "\n".join(f"  - {problem}" for problem in found))


def load_sources(plan: Plan) -> list[Source]:
    """The plan's sources with their sizes: from the token set where it exists, else as declared; all problems at once."""
    sources, found = [], []
    for words in plan.sources:
        try:
            sources.append(_source(plan, words))
        except CorpusError as error:
            found.append(f"source {words.name!r}: {error}")
    if not found:
        for word, what, asked, there in (("langs", "languages", plan.langs, {lang for source in sources for lang in source.langs}),
                                         ("groups", "groups", plan.groups, {name for source in sources for name in source.groups})):
            found += [f"{word}.{name}: no source has text in {name!r}; the sources' {what} are {', '.join(sorted(there))}"
                      for name in sorted(set(asked) - there)]
    if found:
        raise refusal("blend plan", found)
    return sources


def _source(plan: Plan, words: SourceWords) -> Source:
    num_tokens, langs = words.num_tokens, {words.lang: 1.0}
    is_declared = not Path(words.path).exists()
    if not is_declared:
        token_set = load_token_set(words.path)
        num_tokens = token_set.num_tokens
        langs = langs if words.lang else dict(token_set.lang_share)
    if num_tokens is None:
        raise CorpusError(f"there is no token set {words.path} yet; declare its size with num_tokens")
    if "" in langs and (plan.langs or plan.groups):
        raise CorpusError(f"its language is not known, and [{'langs' if plan.langs else 'groups'}] sets shares; name it with lang")
    return Source(words.name, words.path, words.domain, langs, num_tokens, num_tokens * (1 - plan.valid_ratio),
                  words.max_epochs or plan.max_epochs or math.inf, is_declared, words.origin or "original")


def percent(share: float) -> str:
    """A share in messages and tables, to four digits."""
    return f"{100 * share:.4g}%"


def short_tokens(number: float) -> str:
    """A number of tokens in messages and tables, to four digits."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:.0f}"
