"""When is an answer right, and how often would luck be right?

Pure functions of one record (see `answer`).
"""

import math
from typing import Any

Record = dict[str, Any]


def is_correct(record: Record, method: str) -> bool:
    """Whether what was picked is exactly one of the accepted answers."""
    if record["always_correct"]:
        return True
    return sorted(record["picked"][method]) in [sorted(answer) for answer in record["answers"]]


def chance_of(record: Record) -> float:
    """Probability that picking `num_to_pick` of `num_choices` at random is right; a number is never guessed."""
    if record["always_correct"]:
        return 1.0
    if not record["num_choices"]:
        return 0.0
    return len(record["answers"]) / math.comb(record["num_choices"], record["num_to_pick"])
