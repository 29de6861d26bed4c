"""A folder with a manifest is complete; a stage writes only where it may."""

import json
from pathlib import Path

import pytest

from megatron_jmed.corpus import manifest as manifest_module
from megatron_jmed.corpus.manifest import (
    PARTIAL_NAME,
    Counts,
    GroupCounts,
    InputFile,
    Manifest,
    OutputFile,
    code_version,
    load_manifest,
    open_target,
    publish,
    sha256_file,
)
from megatron_jmed.errors import CorpusError

SETTINGS = {"rule": 3}
INPUTS = [InputFile(path="a.jsonl", bytes=5, sha256="0" * 64)]
NAMES = ("out.txt", "removed")


def open_(target: Path, settings: dict = SETTINGS, inputs: list[InputFile] = INPUTS, **changes) -> Manifest | None:
    return open_target(target, "clean", settings, inputs, NAMES, **changes)


def finish(target: Path, text: str = "hello") -> Manifest:
    """Do what a stage does between open_target and the end."""
    path = target / PARTIAL_NAME / "out.txt"
    path.write_text(text)
    file = OutputFile(path="out.txt", rows=1, bytes=len(text), sha256=sha256_file(path))
    manifest = Manifest(
        stage="clean",
        settings=SETTINGS,
        code_version=code_version(),
        source="somewhere",
        inputs=INPUTS,
        files=[file],
        counts=Counts(documents=1, dropped={"empty_text": 2}, by_lang={"ja": GroupCounts(documents=1)}),
    )
    publish(target, manifest, NAMES)
    return manifest


def test_a_finished_target_is_returned_and_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    assert open_(target) is None
    written = finish(target)
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "out.txt"]
    before = (target / "manifest.json").stat().st_mtime_ns
    assert open_(target) == written == load_manifest(target)
    assert (target / "manifest.json").stat().st_mtime_ns == before


def test_files_beside_a_finished_result_do_not_disturb_the_skip(tmp_path: Path) -> None:
    open_(tmp_path)
    finish(tmp_path)
    (tmp_path / "cache").mkdir()
    assert open_(tmp_path) is not None
    with pytest.raises(CorpusError, match="not from a run of stage 'clean': cache"):
        open_(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"rule": 4}}, "rule = 3 there, 4 now"),
        ({"settings": {"rule": 3, "new": True}}, "new = None there, True now"),
        ({"inputs": [InputFile(path="a.jsonl", bytes=5, sha256="1" * 64)]}, r"1 input file\(s\) differ, first a.jsonl"),
        ({"inputs": []}, r"1 input file\(s\) differ, first a.jsonl"),
    ],
)
def test_a_result_of_something_else_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    open_(tmp_path)
    finish(tmp_path)
    with pytest.raises(CorpusError, match=f"{message}.*--overwrite"):
        open_(tmp_path, **changes)
    assert (tmp_path / "out.txt").read_text() == "hello"


def test_overwrite_keeps_the_old_result_until_the_new_one_is_ready(tmp_path: Path) -> None:
    open_(tmp_path)
    finish(tmp_path)
    assert open_(tmp_path, settings={"rule": 4}, overwrite=True) is None
    assert load_manifest(tmp_path).settings == SETTINGS
    finish(tmp_path, "new text")
    assert (tmp_path / "out.txt").read_text() == "new text"


def test_a_missing_or_changed_file_of_a_finished_target_is_an_error(tmp_path: Path) -> None:
    open_(tmp_path)
    finish(tmp_path)
    (tmp_path / "out.txt").write_text("hell")
    with pytest.raises(CorpusError, match="has 4 bytes, its manifest says 5"):
        open_(tmp_path)
    (tmp_path / "out.txt").unlink()
    with pytest.raises(CorpusError, match="is missing"):
        open_(tmp_path)


def test_an_interrupted_run_starts_again(tmp_path: Path) -> None:
    (tmp_path / PARTIAL_NAME).mkdir()
    (tmp_path / PARTIAL_NAME / "out.txt").write_text("half")
    (tmp_path / "removed").mkdir()  # renamed already, when the run was killed
    assert open_(tmp_path) is None
    assert list((tmp_path / PARTIAL_NAME).iterdir()) == []
    finish(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "out.txt"]


@pytest.mark.parametrize("name", ["thesis.tex", "out.txt"])
def test_files_that_no_run_left_are_refused_and_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(CorpusError, match=f"not from a run of stage 'clean': {name}"):
        open_(tmp_path)
    if name == "thesis.tex":
        with pytest.raises(CorpusError, match="thesis.tex"):
            open_(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "precious"


def test_a_failed_save_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_(tmp_path)
    old = finish(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(manifest_module.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        old.model_copy(update={"stage": "other"}).save(tmp_path)
    assert load_manifest(tmp_path) == old


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format_version=2), "format_version"),
        (lambda data: data.pop("counts"), "counts"),
        (lambda data: data.update(surprise=1), "surprise"),
    ],
)
def test_a_manifest_of_another_shape_is_an_error(change, message: str, tmp_path: Path) -> None:
    open_(tmp_path)
    finish(tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    change(data)
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(CorpusError, match=message):
        load_manifest(tmp_path)


def test_no_manifest_and_broken_manifest_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no manifest.json"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"stage": "cle')
    with pytest.raises(CorpusError, match="is not a manifest of format version 1"):
        load_manifest(tmp_path)


def test_code_version_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    plain = code_version()
    assert plain and "+" not in plain
