"""What has a run read? Answered from its config, token sets and index cache; nothing is logged for it, no GPU is needed.

  replay_data.py RUN --steps 120 124             the documents in each sequence of these steps
  replay_data.py RUN --document ID               the steps in which a document was or will be read
  replay_data.py RUN --document-number SOURCE N  the same, by its number in the token set of a source
  replay_data.py RUN --read-until 1000           tokens, epochs and unique documents up to a step (or checkpoint folder, or "end")

RUN is a run folder, or whatever the training is started with: recipe, .toml or .json and changes. Run it in the folder in
which the training is started. Steps count from 1, as in metrics.jsonl. Ids need tools/list_documents.py, once per token set.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from megatron_jmed.config import RunConfig, load_config
from megatron_jmed.data.read_account import read_account
from megatron_jmed.data.replay import Pieces, Replay, open_replay
from megatron_jmed.data.sources import load_token_sets
from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.run_folder import RunFolder, load_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run folder, recipe name, .toml experiment, or config.json of a run")
    parser.add_argument("changes", nargs="*", help="changes such as budget.total_tokens=2000000000")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--steps", type=int, nargs="+", metavar="STEP", help="one step, or the first and the last")
    what.add_argument("--document", metavar="ID")
    what.add_argument("--document-number", nargs=2, metavar=("SOURCE", "N"))
    what.add_argument("--read-until", metavar="STEP")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the answer there")
    arguments = parser.parse_intermixed_args()
    if len(arguments.steps or ()) > 2:
        raise ConfigError(f"--steps {' '.join(map(str, arguments.steps))}: give one step, or the first and the last")
    config = load_config(*of_run(arguments.run), arguments.changes)
    replay = open_replay(config, load_token_sets(config))
    if arguments.steps:
        answer = steps_answer(replay, arguments.steps[0], arguments.steps[-1])
        lines = steps_lines(answer)
    elif arguments.read_until:
        answer = read_account(replay, step_of(arguments.read_until, config))
        lines = account_lines(answer)
    else:
        answer = documents_answer(replay, wanted_documents(replay, arguments))
        lines = documents_lines(answer)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(answer, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


def of_run(what: str) -> tuple[str]:
    config = RunFolder(what).config
    return (str(config) if config.exists() else what,)


def step_of(text: str, config: RunConfig) -> int:
    if text == "end":
        return config.num_steps
    if text.isdecimal():
        return int(text)
    return load_state(Path(text)).step


def wanted_documents(replay: Replay, arguments: argparse.Namespace) -> list[tuple[int, int]]:
    if arguments.document is None:
        name, number = arguments.document_number
        if not number.isdecimal():
            raise ConfigError(f"--document-number {name} {number}: the number of a document is a whole number, from 0")
        return [(replay.number_of(name), int(number))]
    found = replay.find(arguments.document)
    if not found:
        raise ConfigError(f"no document of {', '.join(replay.source_names)} has the id {arguments.document!r}")
    return found


# ---- steps -> documents


def steps_answer(replay: Replay, first: int, last: int) -> dict[str, Any]:
    steps: dict[int, dict[str, Any]] = {}
    for step, sequence, piece in rows(replay, replay.pieces_of_steps(first, last)):
        one = steps.setdefault(step, {"step": step, "is_skipped": replay.config.data.is_skipped(step), "sequences": []})
        if len(one["sequences"]) == sequence:
            one["sequences"].append({"sequence": sequence, "source": piece.pop("source"), "documents": []})
        piece.pop("source", None)
        one["sequences"][sequence]["documents"].append(piece)
    return {"steps": list(steps.values())}


def rows(replay: Replay, pieces: Pieces):
    """(step, sequence, what the piece is) of each."""
    columns = (pieces.step, pieces.sequence, pieces.source, pieces.document, pieces.begin, pieces.end)
    for step, sequence, source, document, begin, end in zip(*(column.tolist() for column in columns), strict=True):
        yield step, sequence, {**replay.document_facts(source, document), "begin": begin, "end": end}


def steps_lines(answer: dict[str, Any]):
    for step in answer["steps"]:
        yield f"step {step['step']}{'  skipped: not read' if step['is_skipped'] else ''}"
        for sequence in step["sequences"]:
            documents = "  ".join(f"{name_of(d)}[{d['begin']}:{d['end']}]" for d in sequence["documents"])
            yield f"  sequence {sequence['sequence']}  {sequence['source']}  {documents}"


def name_of(document: dict[str, Any]) -> str:
    return document.get("id", f"document {document['document']} ")


# ---- documents -> steps


def documents_answer(replay: Replay, documents: list[tuple[int, int]]) -> dict[str, Any]:
    answer = []
    for source, document in documents:
        facts = replay.document_facts(source, document)
        places = [{"step": step, "sequence": sequence, "begin": piece["begin"], "end": piece["end"],
                   "is_skipped": replay.config.data.is_skipped(step)}
                  for step, sequence, piece in rows(replay, replay.pieces_of_documents(source, [document]))]
        answer.append(facts | {"is_for_validation": replay.is_for_validation(source, document), "places": places})
    return {"documents": answer}


def documents_lines(answer: dict[str, Any]):
    for document in answer["documents"]:
        characters = f", {document['num_characters']:,} characters" if "num_characters" in document else ""
        yield (f"{document['source']}  {name_of(document)}  (document {document['document']:,}, {document['num_tokens']:,} "
               f"tokens{characters})")
        if document["is_for_validation"]:
            yield "  kept for validation: never trained on"
        elif not document["places"]:
            yield "  not within this run's budget: never read"
        for place in document["places"]:
            yield (f"  step {place['step']}  sequence {place['sequence']}  tokens {place['begin']}:{place['end']}"
                   f"{'  skipped: not read' if place['is_skipped'] else ''}")


# ---- accounts


def account_lines(answer: dict[str, Any]):
    yield f"up to step {answer['step']:,} ({answer['skipped_steps']:,} of them skipped)"
    yield f"{'':28s} {'tokens':>18s} {'epochs':>8s} {'unique documents':>18s} {'of':>14s}"
    for name, sums in (*((one["name"], one) for one in answer["sources"]),
                       *((f"language {one['lang']}", one) for one in answer["langs"]), ("all", answer["all"])):
        yield (f"{name:28s} {sums['tokens']:18,} {sums['epochs']:8.3f} {sums['unique_documents']:18,} "
               f"{sums['documents']:14,}")


if __name__ == "__main__":
    run_tool(main)
