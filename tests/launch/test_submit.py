"""Does submit.py refuse what cannot work before anything is queued, and write what the job script needs? Without Slurm."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from launch.cluster import CLUSTERS, load_cluster, walltime_seconds
from launch.run_files import take_snapshot
from launch.submit import main
from megatron_jmed.config import load_config
from megatron_jmed.errors import ConfigError, run_tool
from megatron_jmed.train.estimate import GIB, count_parameters, stage_memory

LOCAL = ("--cluster", "local", "--nodes", 2)


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that stands before, and hides, a Slurm of this machine."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/nowhere")
    return folder


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """submit.py in this process, which is quicker than a new one; an exception that is not the user's fails the test."""

    def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["submit.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_tool(main)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, printed.out, printed.err)

    return run


def add_command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def add_slurm(folder: Path, queue: str = "") -> Path:
    """sbatch that writes its arguments down and answers job 41, and squeue that answers `queue`."""
    record = folder / "sbatch.arguments"
    add_command(folder, "sbatch", f'[ "$1" = --test-only ] && exit 0; printf "%s\\n" "$@" > {record}; echo 41')
    add_command(folder, "squeue", f'echo "{queue}"')
    return record


# --- the plan ------------------------------------------------------------------------------------------------------


def test_plan_of_the_large_recipe_matches_the_estimate(submit, tmp_path: Path):
    answer = submit(tmp_path, "llmjp_8x13b", "--cluster", "generic_h100", "--nodes", 8, "optim.peak_lr=1e-5")
    assert answer.returncode == 0, answer.stderr
    config = load_config("llmjp_8x13b")
    assert f"{count_parameters(config.model, config.padded_vocab_size).total:,} in all" in answer.stdout
    for stage in range(4):
        total = stage_memory(config, 64, stage).total / GIB
        assert f"stage {stage}: {total:.2f} of 79.6 GiB a rank" in answer.stdout
    assert "18,978 steps of 4,194,304 tokens = 79,599,501,312 tokens" in answer.stdout
    assert "--nodes=8 --ntasks-per-node=1 --time=24:00:00 --signal=B:USR1@900" in answer.stdout
    assert "--gpus-per-node=8" in answer.stdout
    assert "token set tokens/papers_en does not exist" in answer.stdout  # a note, as long as nothing is submitted
    assert "not submitted" in answer.stdout
    saved = json.loads((tmp_path / "runs/llmjp_8x13b/config.json").read_text())
    assert saved["optim"]["peak_lr"] == 1e-5


def test_needs_neither_torch_nor_megatron(experiment: Path, tmp_path: Path):
    program = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "megatron", "transformer_engine", "triton"):
            raise ImportError(f"{{name}} is not on a login node")
sys.meta_path.insert(0, Refuse())
try:
    import torch
    sys.exit("the block does not work")
except ImportError:
    pass
sys.argv = ["submit.py", {str(experiment)!r}, "--cluster", "local", "--nodes", "2"]
runpy.run_path({str(REPOSITORY / "launch" / "submit.py")!r}, run_name="__main__")
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert "not submitted" in answer.stdout


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "complaints"), [
    (("tiny", "--cluster", "locl", "--nodes", 2), ["did you mean 'local'?", "generic_h100, local"]),
    (("tiny", "--cluster", "there.toml", "--nodes", 2), ["there.toml: no such file"]),
    (("tinny", *LOCAL), ["did you mean 'tiny'?"]),
    (("tiny", *LOCAL, "optim.peek_lr=1"), ["optim.peek_lr: no such word, did you mean 'peak_lr'?"]),
    (("tiny", "--cluster", "local", "--nodes", 9), ["--nodes=9: partition main of local takes 1 to 4"]),
    (("tiny", *LOCAL, "--partition", "mian"), ["did you mean 'main'?; partitions: main, spot"]),
    (("tiny", *LOCAL, "--ranks-per-node", 3), ["--ranks-per-node=3: a node of local takes 1 to 2"]),
    (("tiny", *LOCAL, "--time", "soon"), ["--time: 'soon' is not a time"]),
    (("tiny", *LOCAL, "--time", "00:01:00"), ["asks a job to save 60 s before its limit", "at least 120 s"]),
    (("tiny", *LOCAL, "precision.backend=te"), ['precision.backend="te" needs GPUs and local has none']),
    (("llmjp_8x13b", "--cluster", "generic_h100", "--nodes", 1, "parallel.pp=1"), ["178.8 GiB a rank", "the 79.6 GiB"]),
    (("llmjp_8x13b", "--cluster", "generic_h100", "--nodes", 64, "--time", "8-00:00:00"), ["at most 7-00:00:00"]),
    (("tiny", "--cluster", "local", "--nodes", 3, "--partition", "main", "--time", "00:00:10", "--ranks-per-node", 0),
     ["2 problems", "asks a job to save", "--ranks-per-node=0"]),
    (("tiny", "--cluster", "local", "--nodes", 9, "--time", "x"),
     ["3 problems", "parallel.ep x etp x pp = 2 does not divide the 9 ranks", "--nodes=9", "--time"]),
])
def test_refuses_with_every_problem_and_writes_nothing(submit, tmp_path: Path, arguments, complaints):
    answer = submit(tmp_path, *arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    for complaint in complaints:
        assert complaint in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_yes_refuses_a_run_without_its_token_sets(submit, no_slurm: Path, tmp_path: Path):
    record = add_slurm(no_slurm)
    answer = submit(tmp_path, "tiny", *LOCAL, "--yes")
    assert answer.returncode == 2 and "token set runs/tiny/tokens/texts_ja does not exist" in answer.stderr
    assert not record.exists()


def test_yes_needs_sbatch(submit, experiment: Path, tmp_path: Path):
    answer = submit(tmp_path, experiment, *LOCAL, "--yes")
    assert answer.returncode == 2 and "there is no sbatch on this machine" in answer.stderr


def test_what_sbatch_refuses_is_shown(submit, experiment: Path, no_slurm: Path, tmp_path: Path):
    add_command(no_slurm, "sbatch", '[ "$1" = --test-only ] && exit 0; echo "sbatch: error: too many jobs" >&2; exit 1')
    answer = submit(tmp_path, experiment, *LOCAL, "--yes")
    assert answer.returncode == 2 and "sbatch refused the job: sbatch: error: too many jobs" in answer.stderr
    assert not (tmp_path / "runs/tiny/launch.json").exists()


def test_a_wrong_account_is_refused_with_the_users_accounts(submit, experiment: Path, no_slurm: Path, tmp_path: Path):
    add_command(no_slurm, "sbatch", '[ "$1" = --test-only ] && echo "allocation failure: Invalid account or account/partition '
                                    'combination specified" >&2; exit 1')
    add_command(no_slurm, "sacctmgr", 'printf "medical|\\nmedical|gpu\\n"')
    answer = submit(tmp_path, experiment, *LOCAL, "--account", "medcal", "--yes")
    assert answer.returncode == 2 and "Slurm would refuse this job: Invalid account or account/partition" in answer.stderr
    assert "yours are: medical, medical on gpu (--account)" in answer.stderr and not (tmp_path / "runs").exists()
    planned = submit(tmp_path, experiment, *LOCAL, "--account", "medcal")
    assert planned.returncode == 0 and "note        Slurm would refuse this job" in planned.stdout


def test_a_disk_a_quota_an_image_and_a_python_that_are_not_there_are_named_together(submit, experiment: Path, tmp_path: Path):
    local = (CLUSTERS / "local.toml").read_text()
    words = 'storage_tb = 0.000001\npython = "/nowhere/python"\n'
    (tmp_path / "mine.toml").write_text(words + local)
    answer = submit(tmp_path, experiment, "--cluster", "mine.toml", "--nodes", 2, "--yes")
    assert answer.returncode == 2 and "2 problems" in answer.stderr
    assert "more than the quota of local, storage_tb=1e-06" in answer.stderr and "/nowhere/python is no program" in answer.stderr
    container = '[container]\nkind = "apptainer"\nimage = "/nowhere/a.sif"\nmounts = ["/nowhere/data:/data"]\n'
    (tmp_path / "mine.toml").write_text(local + container)
    answer = submit(tmp_path, experiment, "--cluster", "mine.toml", "--nodes", 2, "--yes")
    assert "container.image=/nowhere/a.sif does not exist" in answer.stderr and "/nowhere/data does not exist" in answer.stderr


@pytest.mark.parametrize(("kind", "image", "container", "srun"), [
    ("apptainer", "/i/a b.sif", "('apptainer' 'exec' '--nv' '--bind' '/d:/d,/e:/e' '/i/a b.sif')", "()"),
    ("enroot", "jmed", "('enroot' 'start' '--mount' '/d:/d' '--mount' '/e:/e' 'jmed')", "()"),
    ("pyxis", "/i/a.sqsh", "()", "('--container-image=/i/a.sqsh' '--container-mounts=/d:/d,/e:/e')"),
])
def test_a_word_puts_the_ranks_in_a_container(submit, experiment: Path, tmp_path: Path, kind, image, container, srun):
    text = (CLUSTERS / "local.toml").read_text()
    (tmp_path / "mine.toml").write_text(f'{text}[container]\nkind = "{kind}"\nimage = "{image}"\nmounts = ["/d:/d", "/e:/e"]\n')
    assert submit(tmp_path, experiment, "--cluster", "mine.toml", "--nodes", 2).returncode == 0
    script = '. runs/tiny/launch_env.sh; echo "(${CONTAINER[*]@Q})"; echo "(${SRUN_OPTIONS[*]@Q})"; echo $HOST_PYTHON'
    shown = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env={"JOB_NUMBER": "1"})
    assert shown.stdout.splitlines() == [container, srun, "python3"]


# --- the run folder ------------------------------------------------------------------------------------------------


def test_submits_once_and_notes_it(submit, experiment: Path, no_slurm: Path, tmp_path: Path):
    record = add_slurm(no_slurm)
    answer = submit(tmp_path, experiment, *LOCAL, "--yes", "--job-name", "try")
    assert answer.returncode == 0 and answer.stdout.endswith("submitted   job 41\n")
    run = tmp_path / "runs/tiny"
    assert record.read_text().splitlines() == [
        "--parsable", "--job-name=try", "--partition=main", "--nodes=2", "--ntasks-per-node=1", "--time=01:00:00",
        "--signal=B:USR1@60", f"--output={run}/logs/%x-%j.out", str(run / "code/launch/train.sbatch"), str(run)]
    (note,) = json.loads((run / "launch.json").read_text())["submissions"]
    assert note["job_id"] == "41" and note["code_version"] and note["nodes"] == 2
    assert (run / "logs").is_dir()


def test_launch_env_gives_the_job_its_place_and_environment(submit, experiment: Path, tmp_path: Path):
    local = (CLUSTERS / "local.toml").read_text()
    cluster = tmp_path / "mine.toml"
    cluster.write_text('setup = ["PREPARED=yes"]\nsrun_options = ["--container-image=/images/a b.sqsh"]\n' + local)
    assert submit(tmp_path, experiment, "--cluster", cluster, "--nodes", 2).returncode == 0
    shown = subprocess.run(
        ["/bin/bash", "-c", 'JOB_NUMBER=20001; . "$1"; printf "%s\\n" "$PWD" "$PREPARED" "$OMP_NUM_THREADS" "$PYTHON" '
         '"$NPROC_PER_NODE" "$MASTER_PORT" "${SRUN_OPTIONS[@]}" "${PYTHONPATH%%:*}"', "-", "runs/tiny/launch_env.sh"],
        cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [str(tmp_path), "yes", "1", sys.executable, "1", "10002",
                                         "--container-image=/images/a b.sqsh", str(tmp_path / "runs/tiny/code")]


def test_a_setup_line_that_fails_ends_the_job(submit, experiment: Path, tmp_path: Path):
    cluster = tmp_path / "mine.toml"
    cluster.write_text('setup = ["false"]\n' + (CLUSTERS / "local.toml").read_text())
    assert submit(tmp_path, experiment, "--cluster", cluster, "--nodes", 2).returncode == 0
    sourced = subprocess.run(["/bin/bash", "-c", ". runs/tiny/launch_env.sh; echo went on"], cwd=tmp_path,
                             capture_output=True, text=True, env={"JOB_NUMBER": "1"})
    assert (sourced.returncode, sourced.stdout, sourced.stderr) == (2, "", "setup failed: false\n")


def test_the_same_again_changes_nothing(submit, experiment: Path, tmp_path: Path):
    first = submit(tmp_path, experiment, *LOCAL)
    files = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    second = submit(tmp_path, experiment, *LOCAL)
    assert first.stdout == second.stdout and {"config.json", "launch_env.sh", "gate.json"} <= {path.name for path in files}
    assert files == {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}


@pytest.mark.parametrize("change", ["model.num_layers=4", "data.valid_ratio=0.1", "seed=5", "budget.seq_length=64"])
def test_refuses_a_folder_that_holds_another_run(submit, experiment: Path, tmp_path: Path, change: str):
    submit(tmp_path, experiment, *LOCAL)
    before = (tmp_path / "runs/tiny/config.json").read_bytes()
    answer = submit(tmp_path, experiment, *LOCAL, change)
    word, _, new = change.partition("=")
    assert answer.returncode == 2 and "holds another run" in answer.stderr and f"{word}: " in answer.stderr
    assert f"-> {new}" in answer.stderr and "run_folder=" in answer.stderr
    assert (tmp_path / "runs/tiny/config.json").read_bytes() == before


def test_other_words_may_change_and_are_named(submit, experiment: Path, tmp_path: Path):
    submit(tmp_path, experiment, *LOCAL)
    answer = submit(tmp_path, experiment, *LOCAL, "optim.peak_lr=1e-3")
    assert answer.returncode == 0 and "changed     optim.peak_lr: 0.003 -> 0.001" in answer.stdout
    assert json.loads((tmp_path / "runs/tiny/config.json").read_text())["optim"]["peak_lr"] == 1e-3


def put_checkpoint(run: Path, step: int) -> None:
    config = load_config(str(run / "config.json"))
    folder = run / "checkpoints" / f"step_{step:07d}"
    folder.mkdir(parents=True)
    state = {"step": step, "tokens": step * config.tokens_per_step, "model": config.model.model_dump(), "has_optimizer": True}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_finished_run_is_refused_until_its_budget_is_raised(submit, experiment: Path, tmp_path: Path):
    submit(tmp_path, experiment, *LOCAL)
    run = tmp_path / "runs/tiny"
    put_checkpoint(run, 30)
    (run / "done").write_text("30\n")
    refused = submit(tmp_path, experiment, *LOCAL)
    assert refused.returncode == 2 and "is done: its checkpoint is at step 30 of 30" in refused.stderr
    assert "raise budget.total_tokens" in refused.stderr
    longer = submit(tmp_path, experiment, *LOCAL, "budget.total_tokens=7680")
    assert longer.returncode == 0 and "budget.total_tokens: 3840 -> 7680" in longer.stdout and not (run / "done").exists()


def test_a_left_over_stop_file_is_removed(submit, experiment: Path, tmp_path: Path):
    submit(tmp_path, experiment, *LOCAL)
    (tmp_path / "runs/tiny/stop").touch()
    again = submit(tmp_path, experiment, *LOCAL)
    assert again.returncode == 0 and "left over" in again.stdout
    assert not (tmp_path / "runs/tiny/stop").exists()


def test_a_queued_run_is_left_alone(submit, experiment: Path, no_slurm: Path, tmp_path: Path):
    run = tmp_path / "runs/tiny"
    record = add_slurm(no_slurm, queue=f"7 RUNNING /x/train.sbatch /elsewhere/runs/tiny\n8 PENDING /x/train.sbatch {run}")
    answer = submit(tmp_path, experiment, *LOCAL, "--yes")
    assert answer.returncode == 2 and "job 8 (PENDING) trains in runs/tiny" in answer.stderr
    assert not run.exists() and not record.exists()


# --- cluster files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_cluster_file_is_whole_and_named_after_itself(path: Path):
    assert load_cluster(path.stem).name == path.stem


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ("gpus_per_node = 0", "gpu_per_node = 0", "gpu_per_node: no such word, did you mean 'gpus_per_node'?"),
    ("gpus_per_node = 0", "", "gpus_per_node: must be given"),
    ("gpus_per_node = 0", "gpus_per_node = 1", "max_ranks_per_node=2 is more than gpus_per_node=1"),
    ("\nranks_per_node = 1", "\nranks_per_node = 5", "ranks_per_node=5 is more than max_ranks_per_node=2"),
    ('partition = "main"', 'partition = "big"', "partition='big' is none of partitions: main, spot"),
    ('walltime = "01:00:00"', 'walltime = "1h"', "walltime='1h': '1h' is not a time"),
    ("[partitions.main]\nmax_nodes", "[partitions.main]\nnodes_max", "partitions.main.nodes_max: no such word, did you mean "
     "'max_nodes'?"),
    ("\nranks_per_node = 1", "\nmaster_port_count = 60000\nranks_per_node = 1", "70000 is more than 65536"),
    ("name =", "name", "mine.toml: "),
    ("[environment]", '[environment]\nWANDB_API_KEY = "x"', "WANDB_API_KEY does not belong here"),
    ("partition =", 'setup = ["export HF_TOKEN=x"]\npartition =', "HF_TOKEN does not belong here"),
    ("[gate]", '[container]\nkind = "apptainer"\n[gate]', "kind='apptainer' and image=''"),
    ("[gate]", "[gate]\ntolerence = 1", "gate.tolerence: no such word, did you mean 'tolerance'?"),
    ("partition =", 'scheduler = "lsf"\npartition =', "scheduler='lsf': Input should be 'slurm', 'pbs' or 'age'"),
])
def test_a_wrong_cluster_file_is_explained(tmp_path: Path, old: str, new: str, complaint: str):
    text = (CLUSTERS / "local.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        load_cluster(str(path))
    assert str(path) in str(error.value) and complaint in str(error.value)


def test_walltime_in_seconds():
    assert [walltime_seconds(text) for text in ("00:01:02", "24:00:00", "1-02:03:04")] == [62, 86_400, 93_784]


def test_code_that_cannot_be_copied_is_said_in_one_line(tmp_path, monkeypatch):
    def full(source, target, ignore):
        raise shutil.Error([(str(source), str(target), "[Errno 28] No space left on device: 'x'")])

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(ConfigError, match="the code cannot be copied to .*No space left on device"):
        take_snapshot(tmp_path / "code")
