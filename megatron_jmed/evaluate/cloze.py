"""How is an exam made of plain text? Which of four continuations does a text have?

In: documents that no run was trained on. Out: questions in the form of one's own exam (`exam_forms`): the beginning of a document,
its next sentence, and the sentences at such a place of three other documents of the same language and about the same length.
Invariant: the same documents, number and seed give the same questions; a document gives at most one, and no text is a choice of
one question twice. Guessing is right in a quarter of them.

Which documents are kept out: a run with data.valid_ratio = r trains on the first round((1 - r) n) of the n documents of each
token set, in the order of the text they were made of; `held_out` takes the others.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_jmed.corpus.document import Document
from megatron_jmed.corpus.measures import sentences
from megatron_jmed.errors import CorpusError
from megatron_jmed.evaluate.question import LETTERS

NUM_CHOICES = 4
SHORTEST = 12  # characters; a shorter sentence ("Answer: yes.") may follow anything
MOST_UNLIKE = 1.5  # the longest choice may be so many times as long as the right one, and the other way round
CANDIDATES = 12  # of the sentences nearest in length the wrong ones are drawn


def held_out(documents: Sequence[Document], valid_ratio: float) -> list[Document]:
    """The documents that a run with data.valid_ratio does not train on."""
    kept = list(documents[round((1 - valid_ratio) * len(documents)) :])
    if not kept:
        raise CorpusError(f"of {len(documents)} documents a valid_ratio of {valid_ratio} keeps none out of training")
    return kept


def make_cloze(documents: Sequence[Document], num_questions: int, seed: int, context_characters: int = 240) -> list[dict[str, Any]]:
    """The questions as rows; CorpusError where the documents do not give so many."""
    pools: dict[str, list[tuple[Document, str, str]]] = defaultdict(list)
    for document in documents:
        if cut := _cut(document, context_characters):
            pools[document.lang].append((document, *cut))
    rows = [row for lang, pool in sorted(pools.items()) for row in _questions(pool, random.Random(f"{seed}:{lang}"))]
    if len(rows) < num_questions:
        raise CorpusError(
            f"{len(documents)} documents give {len(rows)} questions, and {num_questions} are asked; give more documents "
            f"of at least two sentences, the last of {SHORTEST} characters or more"
        )
    chosen = random.Random(seed).sample(rows, num_questions)
    return [{"id": f"cloze-{number}", **row} for number, row in enumerate(chosen, 1)]


def _cut(document: Document, context_characters: int) -> tuple[str, str] | None:
    """(beginning, next sentence) of a document; as many sentences as fit stand in the beginning, at least one."""
    is_ja = document.lang == "ja"
    found = sentences(document.text, is_ja)
    if len(found) < 2:
        return None
    glue, begin, num_taken = "" if is_ja else " ", found[0], 1
    while num_taken + 1 < len(found) and len(begin) + len(found[num_taken]) <= context_characters:
        if len(found[num_taken + 1]) < SHORTEST:
            break
        begin, num_taken = f"{begin}{glue}{found[num_taken]}", num_taken + 1
    return (begin, found[num_taken]) if len(found[num_taken]) >= SHORTEST else None


def _questions(pool: Sequence[tuple[Document, str, str]], rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for document, begin, following in pool:
        others = sorted({other for _, _, other in pool} - {following}, key=lambda other: (abs(len(other) - len(following)), other))
        near = [other for other in others[:CANDIDATES] if 1 / MOST_UNLIKE <= len(other) / len(following) <= MOST_UNLIKE]
        if len(near) < NUM_CHOICES - 1:
            continue
        choices = [following, *rng.sample(near, NUM_CHOICES - 1)]
        rng.shuffle(choices)
        rows.append(
            {
                "question": begin,
                "choices": choices,
                "answer": LETTERS[choices.index(following)],
                "lang": document.lang,
                "subject": document.source,
                "category": document.id,
            }
        )
    return rows
