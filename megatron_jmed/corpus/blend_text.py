"""How is a blend shown, and how does an experiment take it over?

In: a blend. Out: a table for the eye, and lines of TOML for a run's config.
Invariant: the weights of the TOML are the blend's, in full.
"""

import json
import math

from megatron_jmed.corpus.blend import Blend
from megatron_jmed.corpus.blend_plan import percent, short_tokens


def blend_table(blend: Blend) -> str:
    """The blend for the eye: sources, then shares by domain and language beside their targets."""
    plan = blend.plan
    lines = [f"{'source':24} {'language':>10} {'domain':>12} {'to train on':>12} {'weight':>9} {'read':>9} {'epochs':>8} "
             f"{'cap':>6}"]
    for s in blend.sources:
        cap = f"{s.source.max_epochs:g}{'*' if s.is_at_cap else ' '}" if math.isfinite(s.source.max_epochs) else "- "
        there, read = short_tokens(s.source.train_tokens), short_tokens(s.tokens)
        lines.append(f"{s.source.name:24} {'+'.join(sorted(s.source.langs)) or '-':>10} {s.source.domain:>12} "
                     f"{there:>12} {s.weight:9.5f} {read:>9} {s.epochs:8.3f} {cap:>7}")
    lines.append("* the cap binds\n")
    kinds = [("domain", blend.domain_shares(), plan.domains), ("language", blend.lang_shares(), plan.langs)]
    if plan.groups:
        kinds.append(("group", blend.group_shares(), plan.groups))
    for kind, shares, asked in kinds:
        for name, share in shares.items():
            target = f"asked {' to '.join(dict.fromkeys(map(percent, asked[name])))}" if name in asked else "free"
            if kind == "domain" and name == plan.general_domain and plan.min_general:
                target += f", at least {percent(plan.min_general)} to be replayed"
            read = short_tokens(share * plan.total_tokens)
            lines.append(f"{kind:8} {name or '(unknown)':15} {percent(share):>8} {read:>9}  {target}")
    lines.append(f"\n{plan.total_tokens:,} tokens; unevenness (Gini coefficient of how often a token is read): {blend.gini:.4f}")
    return "\n".join(lines)


def blend_toml(blend: Blend) -> str:
    """The `data` lines of an experiment; they come before its first [section]."""
    lines = [f"# made by tools/check_blend.py for budget.total_tokens = {blend.plan.total_tokens}",
             f"data.valid_ratio = {blend.plan.valid_ratio!r}", "data.blend = ["]
    for s in blend.sources:
        source = s.source
        if not s.weight:
            lines.append(f"  # {json.dumps(source.name, ensure_ascii=False)} is not read at all")
            continue
        words = {"name": source.name, "path": source.path, "weight": float(s.weight)}
        if len(source.langs) == 1:
            words["lang"] = next(iter(source.langs))
        if source.is_declared:
            words["num_tokens"] = source.num_tokens
        # A JSON string or number is a TOML one as well, but for DEL, which TOML wants escaped.
        text = ", ".join(f"{word} = {json.dumps(value, ensure_ascii=False)}" for word, value in words.items())
        lines.append(f"  {{ {text} }},".replace("\x7f", "\\u007f"))
    return "\n".join([*lines, "]"])
