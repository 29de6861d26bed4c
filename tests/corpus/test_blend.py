"""A blend meets its plan or is refused with numbers that would work; and Megatron-JMed's config takes what it prints."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from megatron_jmed.config import load_config
from megatron_jmed.corpus import blend_plan
from megatron_jmed.corpus.blend import Blend, solve_blend, violations
from megatron_jmed.corpus.blend_plan import Plan, load_plan, load_sources
from megatron_jmed.corpus.blend_text import blend_table, blend_toml
from megatron_jmed.corpus.tokens import tokenize
from megatron_jmed.errors import CorpusError

REPO = Path(__file__).parents[2]


def source(name: str, tokens: int, domain: str = "medical", lang: str = "ja", **words) -> dict:
    return {"name": name, "path": f"no/such/{name}", "num_tokens": tokens, "domain": domain, "lang": lang, **words}


def solve(*sources: dict, total_tokens: int = 1000, valid_ratio: float = 0.0, **words) -> Blend:
    plan = Plan.model_validate({"total_tokens": total_tokens, "valid_ratio": valid_ratio, "sources": sources, **words})
    return solve_blend(plan, load_sources(plan))


def refusal(*sources: dict, **words) -> str:
    with pytest.raises(CorpusError) as error:
        solve(*sources, **words)
    return str(error.value)


def weights(blend: Blend) -> list[float]:
    return [s.weight for s in blend.sources]


def epochs(blend: Blend) -> list[float]:
    return [s.epochs for s in blend.sources]


# ---- cases solved by hand


def test_without_targets_every_token_is_read_equally_often():
    blend = solve(source("a", 600), source("b", 300, lang="en"), source("c", 100, domain="general"), total_tokens=2000)
    assert weights(blend) == pytest.approx([0.6, 0.3, 0.1])
    assert epochs(blend) == pytest.approx([2, 2, 2]) and blend.gini == pytest.approx(0, abs=1e-9)


def test_exact_shares_fix_the_sums_and_sources_of_one_kind_are_read_equally_often():
    blend = solve(source("a", 600), source("b", 200), source("c", 200, lang="en"), langs={"ja": 0.5, "en": 0.5})
    assert weights(blend) == pytest.approx([0.375, 0.125, 0.5])
    assert epochs(blend) == pytest.approx([0.625, 0.625, 2.5])
    assert blend.gini == pytest.approx(abs(0.8 * 0.5 - 0.2 * 0.5))  # one pair of kinds: |p_j w_i - p_i w_j|


def test_of_a_range_the_share_nearest_to_the_sizes_is_taken():
    sources = source("a", 800), source("b", 200, lang="en")
    assert weights(solve(*sources, langs={"en": [0.3, 0.5]})) == pytest.approx([0.7, 0.3])
    assert weights(solve(*sources, langs={"en": [0.1, 0.5]})) == pytest.approx([0.8, 0.2])
    assert weights(solve(*sources, langs={"en": [0.0, 0.1]})) == pytest.approx([0.9, 0.1])


def test_a_cap_that_binds_moves_the_rest_to_the_other_sources_of_the_domain():
    blend = solve(source("small", 100, max_epochs=1), source("large", 900), source("g", 1000, domain="general"),
                  domains={"medical": 0.8}, total_tokens=2000)
    assert [s.tokens for s in blend.sources] == pytest.approx([100, 1500, 400])
    assert [s.is_at_cap for s in blend.sources] == [True, False, False]


def test_general_text_is_replayed_at_least_so_much():
    sources = source("m", 900), source("g", 100, domain="general")
    assert weights(solve(*sources)) == pytest.approx([0.9, 0.1])
    assert weights(solve(*sources, min_general=0.25)) == pytest.approx([0.75, 0.25])
    assert weights(solve(*sources, min_general=0.05)) == pytest.approx([0.9, 0.1])
    other = source("m", 900), source("w", 100, domain="web")
    assert weights(solve(*other, min_general=0.25, general_domain="web")) == pytest.approx([0.75, 0.25])


def test_domains_and_languages_together():
    blend = solve(source("mj", 100), source("me", 400, lang="en"), source("gj", 300, domain="general"),
                  source("ge", 200, domain="general", lang="en"), domains={"medical": 0.5}, langs={"ja": 0.5}, total_tokens=1000)
    mj, me, gj, _ = weights(blend)
    assert (mj + me, mj + gj) == pytest.approx((0.5, 0.5))
    # One freedom x = mj = ge, me = gj = 0.5 - x is left, and a sum of |.| has its minimum where two sources are read alike.
    sizes = np.array([0.1, 0.4, 0.3, 0.2])
    alike = [0, 0.1, 1 / 8, 1 / 6, 0.2, 0.5]
    ginis = [np.abs(np.outer(sizes, w) - np.outer(w, sizes)).sum() / 2 for w in ([x, .5 - x, .5 - x, x] for x in alike)]
    assert blend.gini == pytest.approx(min(ginis)) and mj == pytest.approx(alike[int(np.argmin(ginis))])


def test_validation_share_is_not_counted_as_text_to_train_on():
    blend = solve(source("a", 1000), total_tokens=900, valid_ratio=0.1)
    assert epochs(blend) == pytest.approx([1])
    assert "1,000 is asked; with all else kept 899 works" in refusal(source("a", 1000), valid_ratio=0.1, max_epochs=1)


def test_own_cap_goes_before_the_plans():
    blend = solve(source("a", 100, max_epochs=5), source("b", 600), total_tokens=1000, max_epochs=1)
    assert epochs(blend) == pytest.approx([4, 1])


def test_size_and_languages_come_from_the_token_set_where_it_exists(settings, write_lines, tmp_path):
    lines = [{"text": "咳と熱が三日続いている。", "lang": "ja"}] * 5 + [{"text": "A cough and a fever.", "lang": "en"}] * 5
    manifest = tokenize(write_lines(lines), tmp_path / "tokens", settings())
    words = {"name": "both", "path": str(tmp_path / "tokens"), "domain": "medical", "num_tokens": 7}
    blend = solve(words, source("ja", 1000), langs={"ja": 0.9}, total_tokens=100)
    both = blend.sources[0].source
    share = manifest.counts.by_lang["en"].tokens / manifest.counts.tokens
    assert both.num_tokens == manifest.counts.tokens and not both.is_declared
    assert weights(blend)[0] * share == pytest.approx(0.1) and blend.lang_shares()["en"] == pytest.approx(0.1)
    assert "lang =" not in blend_toml(blend).splitlines()[3]  # it has no single language


# ---- infeasible


def test_caps_below_the_budget_are_named_with_a_budget_and_a_factor_that_work():
    sources = source("a", 100, max_epochs=2), source("b", 200, lang="en", max_epochs=1)
    message = refusal(*sources, total_tokens=1000)
    assert "all sources together give at most 400 under their epoch caps" in message
    assert "max_epochs of a: 2 is asked; with all else kept 8 works" in message
    assert "max_epochs of b: 1 is asked; with all else kept 4 works" in message
    assert "all caps 2.5 times as high" in message and "1,000 is asked; with all else kept 399 works" in message
    assert epochs(solve(*sources, total_tokens=399)) == pytest.approx([2, 1], rel=0.02)
    assert solve(source("a", 100, max_epochs=8), sources[1], total_tokens=1000)


def test_target_beyond_a_domains_text_is_named_with_the_share_that_works():
    sources = source("m", 100, max_epochs=4), source("g", 5000, domain="general")
    message = refusal(*sources, domains={"medical": 0.8})
    assert "share of domain 'medical': 80% is asked; with all else kept 40% works" in message
    assert "max_epochs of m: 4 is asked; with all else kept 8 works" in message
    assert "total_tokens: 1,000 is asked; with all else kept 499 works" in message
    assert weights(solve(*sources, domains={"medical": 0.4})) == pytest.approx([0.4, 0.6])


def test_languages_that_contradict_domains_are_named_both():
    """All medical text is English: 70% of it leave no room for half Japanese."""
    sources = source("m", 1000, lang="en"), source("g", 1000, domain="general")
    message = refusal(*sources, domains={"medical": 0.7}, langs={"ja": [0.5, 0.6]})
    assert "share of domain 'medical': 70% is asked; with all else kept 50% works" in message
    assert "share of language 'ja': 50% to 60% is asked; with all else kept 30% works" in message
    assert "max_epochs" not in message and "total_tokens" not in message  # more text would not help


def test_replay_that_the_targets_leave_no_room_for_is_named():
    message = refusal(source("m", 1000), source("g", 1000, domain="general"), domains={"medical": [0.8, 0.9]}, min_general=0.3)
    assert "min_general: 30% is asked; with all else kept 20% works" in message
    assert "share of domain 'medical': 80% to 90% is asked; with all else kept 70% works" in message


def test_where_no_single_change_is_enough_they_are_named_together():
    message = refusal(source("a", 100, "x", "ja", max_epochs=1), source("b", 100, "y", "en", max_epochs=1),
                      source("c", 10_000, "z", "zh"), domains={"x": 0.3}, langs={"en": 0.3})
    assert "No single change" not in message and "all caps 3 times" in message  # one factor on all caps is one change
    message = refusal(source("a", 1000, "x", "ja"), source("b", 1000, "y", "en"),
                      domains={"x": 0.9, "y": 0.1}, langs={"ja": 0.2, "en": 0.8})
    assert "No single change is enough; these together" in message
    assert all(f"share of {what}" in message for what in ("domain 'x'", "domain 'y'")) or all(
        f"share of {what}" in message for what in ("language 'ja'", "language 'en'"))


def test_rounding_never_names_a_number_that_does_not_work():
    sources = source("m", 1000, max_epochs=1), source("g", 50_000, domain="general")
    words = {"domains": {"medical": 0.9}, "total_tokens": 7001}
    message = refusal(*sources, **words)
    share = float(re.search(r"all else kept ([\d.]+)% works", message)[1]) / 100
    cap = float(re.search(r"max_epochs of m: 1 is asked; with all else kept ([\d.]+) works", message)[1])
    budget = int(re.search(r"total_tokens.*kept ([\d,]+) works", message)[1].replace(",", ""))
    assert solve(*sources, **{**words, "domains": {"medical": share}})
    assert solve(source("m", 1000, max_epochs=cap), sources[1], **words)
    assert solve(*sources, **{**words, "total_tokens": budget})
    for worse in ({"domains": {"medical": share + 1e-3}}, {"total_tokens": budget + 3}):
        assert "no blend meets the plan" in refusal(*sources, **{**words, **worse})


# ---- any plan


def random_plan(rng: np.random.Generator) -> dict:
    domains, langs = ["medical", "general", "web"][: rng.integers(1, 4)], ["ja", "en", "zh"][: rng.integers(1, 4)]
    sources = [source(f"s{i}", int(10 ** rng.uniform(3, 8)), str(rng.choice(domains)), str(rng.choice(langs)),
                      **({"max_epochs": float(rng.uniform(0.5, 10))} if rng.random() < 0.5 else {}))
               for i in range(rng.integers(1, 9))]

    def targets(names: list[str], key: str) -> dict:
        there = sorted({s[key] for s in sources} & set(names))
        shares = rng.dirichlet(np.ones(len(there)))
        return {name: [max(0.0, share - 0.15), min(1.0, share + 0.15)] if rng.random() < 0.7 else float(share)
                for name, share in zip(there, shares, strict=True) if rng.random() < 0.7}

    has_general = any(s["domain"] == "general" for s in sources)
    return {"sources": sources, "total_tokens": int(10 ** rng.uniform(4, 9)), "valid_ratio": float(rng.choice([0, 0.01, 0.3])),
            "domains": targets(domains, "domain"), "langs": targets(langs, "lang"),
            "min_general": float(rng.uniform(0, 0.3)) if has_general and rng.random() < 0.5 else 0.0}


def is_feasible(plan: dict) -> bool:
    """The constraints written down a second time, source by source and in tokens, with no merging and no objective."""
    total, sources = plan["total_tokens"], plan["sources"]
    rows, limits = [], []
    for key, shares in (("domain", plan["domains"]), ("lang", plan["langs"])):
        for name, share in shares.items():
            lo, hi = share if isinstance(share, list) else (share, share)
            row = [float(s[key] == name) for s in sources]
            rows += [row, [-x for x in row]]
            limits += [hi * total, -lo * total]
    rows.append([-float(s["domain"] == "general") for s in sources])
    limits.append(-plan["min_general"] * total)
    bounds = [(0, s["max_epochs"] * s["num_tokens"] * (1 - plan["valid_ratio"]) if "max_epochs" in s else None) for s in sources]
    scaled = [(lo, None if hi is None else hi / total) for lo, hi in bounds]
    return linprog([0] * len(sources), rows, np.array(limits) / total, [[1] * len(sources)], [1], scaled).status == 0


def test_random_plans_are_met_in_every_constraint_or_refused_for_cause():
    rng = np.random.default_rng(20)
    num_met = num_refused = 0
    for _ in range(150):
        words = random_plan(rng)
        try:
            blend = solve(*words["sources"], **{word: value for word, value in words.items() if word != "sources"})
        except CorpusError as error:
            assert "no blend meets the plan" in str(error) and "\n  - " in str(error), error
            assert not is_feasible(words), words
            if budget := re.search(r"total_tokens.*kept ([\d,]+) works", str(error)):
                assert is_feasible({**words, "total_tokens": int(budget[1].replace(",", ""))})
            num_refused += 1
            continue
        num_met += 1
        check_by_hand(words, blend)
    assert num_met > 40 and num_refused > 30


def check_by_hand(words: dict, blend: Blend) -> None:
    """Every constraint, from the words of the plan and the weights alone."""
    got = dict(zip((s["name"] for s in words["sources"]), weights(blend), strict=True))
    assert sum(got.values()) == pytest.approx(1, abs=1e-9) and min(got.values()) >= 0
    for s in words["sources"]:
        read = got[s["name"]] * words["total_tokens"] / (s["num_tokens"] * (1 - words["valid_ratio"]))
        assert read <= s.get("max_epochs", np.inf) * (1 + 1e-6)
    for key, shares in (("domain", words["domains"]), ("lang", words["langs"])):
        for name, share in shares.items():
            lo, hi = share if isinstance(share, list) else (share, share)
            assert lo - 1e-6 <= sum(got[s["name"]] for s in words["sources"] if s[key] == name) <= hi + 1e-6
    assert sum(got[s["name"]] for s in words["sources"] if s["domain"] == "general") >= words["min_general"] - 1e-6


def test_no_feasible_blend_nearby_is_more_even():
    """Random feasible blends of a plan never have a lower Gini coefficient, computed source by source, unmerged."""
    rng = np.random.default_rng(5)
    sources = [source(f"s{i}", int(n), d, la) for i, (n, d, la) in enumerate(
        [(900, "medical", "ja"), (300, "medical", "ja"), (2000, "medical", "en"), (500, "general", "ja"), (700, "general", "en")])]
    blend = solve(*sources, domains={"medical": 0.6}, langs={"ja": [0.5, 0.7]})
    sizes = np.array([s["num_tokens"] for s in sources]) / 4400

    def gini(w: np.ndarray) -> float:
        return float(np.abs(np.outer(sizes, w) - np.outer(w, sizes)).sum() / 2)

    assert blend.gini == pytest.approx(gini(np.array(weights(blend))), abs=1e-9)
    for _ in range(2000):
        ja, a = rng.uniform(0.5, 0.7), rng.uniform()
        medical_ja = rng.uniform(max(0, ja - 0.4), min(ja, 0.6))
        w = np.array([medical_ja * a, medical_ja * (1 - a), 0.6 - medical_ja, ja - medical_ja, 0.4 - ja + medical_ja])
        assert w.min() >= 0 and gini(w) >= blend.gini - 1e-9


def test_violations_sees_each_kind_of_broken_constraint():
    good = solve(source("a", 500, max_epochs=2), source("g", 500, "general", "en"), min_general=0.4, langs={"ja": [0.4, 0.6]})
    assert violations(good) == []
    a, g = good.sources
    for weights_, what in (((0.7, 0.3), "general"), ((0.3, 0.7), "ja"), ((0.5, 0.6), "shares")):
        bad = [type(s)(s.source, w, s.tokens, s.epochs) for s, w in zip((a, g), weights_, strict=True)]
        assert any(what in text for text in violations(Blend(good.plan, tuple(bad), 0.0)))
    assert "a: 3" in violations(Blend(good.plan, (type(a)(a.source, 0.5, 500.0, 3.0), g), 0.0))[0]


# ---- the plan file


def write_plan(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_wrong_in_a_plan_is_named_at_once_with_the_nearest_word(tmp_path):
    path = write_plan(tmp_path, """
total_token = 5
[domains]
medical = [0.9, 0.1]
[[sources]]
name = "a"
path = "a"
domain = "medical"
max_epoch = 3
num_tokens = -1
""")
    with pytest.raises(CorpusError) as error:
        load_plan(path)
    message = str(error.value)
    assert "6 problems" in message
    for text in ("total_tokens: must be given", "total_token: no such word, did you mean 'total_tokens'?",
                 "sources.0.max_epoch: no such word, did you mean 'max_epochs'?", "sources.0.num_tokens=-1",
                 "domains.medical=[0.9, 0.1]"):
        assert text in message


def test_contradictions_that_no_size_can_mend_are_named_at_once(tmp_path):
    path = write_plan(tmp_path, """
total_tokens = 5
min_general = 0.1
domains = {medical = 0.7, web = 0.4}
sources = [{name = "a", path = "a", domain = "medical", num_tokens = 1}, {name = "a", path = "b", domain = "medical"}]
""")
    with pytest.raises(CorpusError) as error:
        load_plan(path)
    message = str(error.value)
    assert "4 problems" in message and "the name 'a' is used twice" in message and "the least shares add up to 110%" in message
    assert "no source has the domain 'web'" in message and "no source has the domain 'general'" in message


def test_sources_without_size_or_language_are_named_at_once(tmp_path):
    message = refusal({"name": "a", "path": str(tmp_path / "a"), "domain": "x", "lang": "ja"}, source("b", 5, lang=""),
                      {"name": "c", "path": str(tmp_path), "domain": "x"}, langs={"ja": 1})
    assert "3 problems" in message and "declare its size with num_tokens" in message
    assert "name it with lang" in message and "manifest" in message
    assert "langs.en: no source has text in 'en'" in refusal(source("b", 5), langs={"en": 1})


def test_missing_and_broken_files_are_users_errors(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        load_plan(tmp_path / "none.toml")
    with pytest.raises(CorpusError, match=r"plan\.toml.*line 1"):
        load_plan(write_plan(tmp_path, "total_tokens = = 3"))


def test_the_plan_in_the_docstring_works(tmp_path):
    text = blend_plan.__doc__.split("## A plan\n")[1]
    plan = load_plan(write_plan(tmp_path, "\n".join(line.removeprefix("    ") for line in text.splitlines())))
    blend = solve_blend(plan, load_sources(plan))
    assert plan.total_tokens == 79_600_000_000 and len(blend.sources) == 5
    assert blend.domain_shares()["general"] >= 0.1 - 1e-6 and blend.lang_shares()["en"] == pytest.approx(0.45)


def test_machine_translated_text_is_a_group_of_its_own():
    sources = (source("a", 600), source("b", 300, origin="machine_translated"), source("c", 100, lang="en"))
    blend = solve(*sources, groups={"ja+mt": 0.25}, total_tokens=500)
    assert blend.group_shares() == pytest.approx({"ja": 0.75 * 6 / 7, "ja+mt": 0.25, "en": 0.75 / 7})
    assert blend.lang_shares()["ja"] == pytest.approx(0.25 + 0.75 * 6 / 7)
    assert "group    ja+mt" in blend_table(blend)
    unknown = refusal(*sources, groups={"en+mt": 0.1})
    assert "groups.en+mt: no source has text in 'en+mt'; the sources' groups are en, ja, ja+mt" in unknown
    assert "share of group 'ja+mt': 90% is asked; with all else kept 60% works" in refusal(
        *sources, groups={"ja+mt": 0.9}, total_tokens=500, max_epochs=1)


# ---- into a run


def test_what_is_printed_becomes_the_data_of_a_run(tmp_path):
    name = 'quoted "ja" \\ 論文'
    blend = solve(source(name, 600), source("b", 400, lang="en"), source("unread", 10, domain="web"),
                  domains={"web": 0}, langs={"ja": [0.7, 0.9]}, valid_ratio=0.02)
    path = tmp_path / "experiment.toml"
    path.write_text(f'recipe = "tiny"\n{blend_toml(blend)}\n[budget]\ntotal_tokens = 245760\n', encoding="utf-8")
    config = load_config(str(path))
    assert config.data.valid_ratio == 0.02 and config.budget.total_tokens == 245760
    assert [(s.name, s.path, s.weight, s.lang, s.num_tokens) for s in config.data.blend] == [
        (s.source.name, s.source.path, s.weight, next(iter(s.source.langs)), s.source.num_tokens) for s in blend.sources[:2]]
    assert blend.sources[2].weight == 0 and '# "unread" is not read at all' in blend_toml(blend)


def test_planned_epochs_are_those_that_a_dry_run_shows(tmp_path):
    from megatron_jmed.train.estimate import source_plans

    blend = solve(source("a", 60_000), source("b", 40_000, lang="en"), langs={"ja": 0.8}, total_tokens=245_760, valid_ratio=0.05)
    path = tmp_path / "experiment.toml"
    path.write_text(f'recipe = "tiny"\n{blend_toml(blend)}\n', encoding="utf-8")
    plans = source_plans(load_config(str(path)), {})
    assert [p.epochs for p in plans] == pytest.approx(epochs(blend)) and [p.tokens for p in plans] == pytest.approx(
        [s.tokens for s in blend.sources])


def test_table_marks_the_caps_that_bind():
    table = blend_table(solve(source("a", 100, max_epochs=2), source("b", 800, domain="general"), domains={"medical": [0.2, 1]},
                              min_general=0.5)).splitlines()
    assert re.search(r"^a .* 0\.20000 .* 2\.000 +2\*$", table[1]) and re.search(r"^b .* 1\.000 +- $", table[2])
    assert any("asked 20% to 100%" in line for line in table) and any("at least 50% to be replayed" in line for line in table)


def test_the_tool_prints_refuses_and_takes_another_budget(tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(REPO / "tools/check_blend.py"), str(REPO / "examples/data/blend.toml"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    lines = run("--toml")
    assert lines.returncode == 0
    path = tmp_path / "experiment.toml"
    path.write_text('recipe = "tiny"\n' + lines.stdout, encoding="utf-8")
    assert [s.weight for s in load_config(str(path)).data.blend] == pytest.approx([0.6, 0.4])
    assert [s.path for s in load_config(str(path)).data.blend] == [s.path for s in load_config("tiny").data.blend]
    refused = run("--tokens", "100000000")
    assert refused.returncode == 2 and refused.stderr.startswith("error: no blend meets the plan: 100M tokens")
