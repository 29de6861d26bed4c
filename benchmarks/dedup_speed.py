"""How many MB of text a CPU-second become MinHash signatures, here and with the peers?

    python benchmarks/dedup_speed.py FILE [FILE ...]

200 hash functions, 5-grams of characters (ja) or words. Ours: folding, n-grams, 200 functions and the exact key, from
`str`; once for each kind of vectors that the machine has, and in Python alone. Peers, where installed (datasketch,
rensa): n-grams cut in Python as their manuals show (`cut` alone is printed too), texts not folded, 200 functions; at
most 1 MB of text, because they are slow. MB are UTF-8.
"""

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from megatron_jmed.corpus import minhash
from megatron_jmed.corpus.code_map import code_map
from megatron_jmed.corpus.document import read_documents
from megatron_jmed.corpus.minhash import MinHash
from megatron_jmed.native import _core

NGRAM, FUNCTIONS, PEER_BYTES = 5, 200, 10**6


def speed(work: Callable[[list[str], str], object], texts: list[str], lang: str) -> float:
    """The best of three."""
    num_bytes, seconds = sum(len(text.encode()) for text in texts), []
    for _ in range(3):
        began = time.process_time()
        work(texts, lang)
        seconds.append(time.process_time() - began)
    return num_bytes / 1e6 / min(seconds)


def cut(text: str, lang: str) -> set[str]:
    if lang == "ja":
        return {text[i : i + NGRAM] for i in range(max(1, len(text) - NGRAM + 1))}
    words = text.split()
    return {" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def ours(vectors: str) -> Callable[[list[str], str], object]:
    hasher = MinHash(NGRAM)
    factors, summands = hasher._functions
    signer = _core.Signer(NGRAM, factors.ravel(), summands.ravel(), minhash._in_words(), vectors)

    def sign(texts: list[str], lang: str) -> None:
        minhash._signer = lambda _: signer
        hasher.sign(texts, [lang] * len(texts))

    return sign


def in_python(texts: list[str], lang: str) -> None:
    minhash._signer = lambda _: None
    MinHash(NGRAM).sign(texts, [lang] * len(texts))


def peers() -> dict[str, Callable[[list[str], str], object]]:
    found: dict[str, Callable[[list[str], str], object]] = {"cut alone": lambda texts, lang: [cut(text, lang) for text in texts]}
    try:
        import datasketch

        def with_datasketch(texts: list[str], lang: str) -> None:
            for text in texts:
                datasketch.MinHash(FUNCTIONS).update_batch([gram.encode() for gram in cut(text, lang)])

        found[f"datasketch {datasketch.__version__}"] = with_datasketch
    except ImportError:
        pass
    try:
        import rensa

        for kind in ("RMinHash", "CMinHash"):

            def with_rensa(texts: list[str], lang: str, kind: str = kind) -> None:
                for text in texts:
                    one = getattr(rensa, kind)(FUNCTIONS, 0)
                    one.update(list(cut(text, lang)))
                    one.digest()

            found[f"rensa {kind}"] = with_rensa
    except ImportError:
        pass
    return found


def main(paths: list[Path]) -> None:
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    began = time.process_time()
    assert code_map(minhash._with_spaces)
    print(f"making the character table: {time.process_time() - began:.2f} CPU-s")
    for path in paths:
        documents = list(read_documents(path))
        texts, lang = [document.text for document in documents], documents[0].lang
        some, num_bytes = [], 0
        for text in texts[:: max(1, len(texts) // 1000)]:
            if (num_bytes := num_bytes + len(text.encode())) > PEER_BYTES:
                break
            some.append(text)
        print(f"{path.name}, {lang}: {len(texts):,} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB")
        rows = {"fold alone": (lambda texts, _: minhash._fold_map().map(texts, one_space=True), texts)}
        rows |= {f"sign, {kind}": (ours(kind), texts) for kind in _core.Signer.vectors()}
        rows |= {"sign in Python": (in_python, some)} | {name: (work, some) for name, work in peers().items()}
        for name, (work, its_texts) in rows.items():
            print(f"    {name:20} {speed(work, its_texts, lang):8.1f} MB/cpu-s", flush=True)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
