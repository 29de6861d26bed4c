"""How does a stage show how far it is?

In: what tqdm takes. Out: a bar on standard error. Invariant: a log is not flooded, and nothing is shown unless asked for.
"""

import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LOG_LINES = 30.0


def progress_bar(*words: Any, show: bool, **more: Any) -> tqdm:
    """A bar that moves twice a second where somebody looks, and twice a minute in a log."""
    interval = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LOG_LINES
    return tqdm(*words, disable=not show, mininterval=interval, **more)
