"""Every command of the README exists and takes the arguments that the README gives it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`((?:python|torchrun) [^`]+)`", README)


def test_readme_is_one_screen_with_its_commands():
    assert len(README.splitlines()) <= 70
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", README)) - {"it"}))
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", (REPO / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_takes_these_arguments(command, tmp_path):
    """Run in an empty folder: it succeeds, or says as a user's mistake what is not there; never a usage error."""
    words = shlex.split(command.partition(" (")[0])
    if words[0] == "torchrun":  # one rank alone says the same as eight
        words = ["python", *words[words.index("-m"):]]
    words = [sys.executable, *words[1:]]
    words = [str(REPO / word) if word.startswith(("tools/", "launch/")) else word for word in words]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=200)
    assert "usage:" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0 or (done.returncode == 2 and "error: " in done.stderr), done.stderr


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:megatron_jmed|tests|launch|benchmarks|tools)/[\w./]*)`", README))))
def test_path_exists(path):
    assert (REPO / path).exists()
