"""Laws of scripts/launch: accelerate and SLURM take the files as they are; what they start has the losses of one process."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from launch_jobs import LAUNCH, REPOSITORY, ZERO_ON_CPU, close, environment, job, log_of, said, start, until

from expresser.cli import main

CONFIGS = {path.stem: path for path in sorted(LAUNCH.glob("*.yaml"))}


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_file_as_it_is_meant(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS[name]))
    assert config.mixed_precision == "no"  # bf16 is the recipe's
    assert config.num_machines == (2 if name.endswith("_nodes") else 1)
    assert config.num_processes % config.num_machines == 0
    assert (config.main_process_ip is None) == (config.num_machines == 1)
    if name.startswith("zero"):
        assert config.distributed_type.value == "DEEPSPEED"
        assert config.deepspeed_config == {"zero_stage": int(name[-1]), "deepspeed_multinode_launcher": "standard"}
    else:
        assert config.distributed_type.value == "MULTI_GPU"
        assert not config.deepspeed_config


def test_the_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    assert {
        path.name for path in LAUNCH.iterdir() if path.name != "README.md" and f"`{path.name}`" not in text
    } == set()


@pytest.mark.slow
def test_two_processes_of_accelerate_have_the_losses_of_one(tiny_corpus, tmp_path):
    """With ZeRO-3; DDP is in the SLURM test below, ZeRO-2 in tests/test_two_nodes.py."""
    pytest.importorskip("deepspeed")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS["zero3"])]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    log = tmp_path / "output.log"
    process = start([*launcher, "-m", "pretrain", *job(tiny_corpus, tmp_path / "two")], log, **ZERO_ON_CPU)
    until(lambda: process.poll() is not None, "the run to end", [process], [log])
    assert process.returncode == 0, said([log])
    main(["pretrain", *job(tiny_corpus, tmp_path / "one")])
    close(tmp_path / "one", tmp_path / "two")


# SLURM, played by two scripts: `srun` starts the command once a node and tells which processes are the step's tasks; `scontrol` names
# the nodes and takes a job back into the queue.

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do
  SLURM_NODEID=$node "$@" & tasks+=($!)
done
echo "${tasks[@]}" > "$CLUSTER/tasks.part" && mv "$CLUSTER/tasks.part" "$CLUSTER/tasks"
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
rm "$CLUSTER/tasks"
exit "${status:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) printf '%s\\n' localhost elsewhere ;;
  requeue) echo "$2" >> "$CLUSTER/requeued" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path) -> Path:
    """A folder with `srun` and `scontrol`, and what they were told."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "spool.sh").write_text((LAUNCH / "slurm.sh").read_text())  # SLURM runs a copy from elsewhere
    return folder


def as_slurm(cluster: Path, **more: str) -> dict[str, str]:
    """The environment of a job's batch script."""
    given = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost,elsewhere", "SLURM_JOB_NUM_NODES": "2"}
    path = os.pathsep.join([str(cluster), str(Path(sys.executable).parent), os.environ["PATH"]])
    return (
        given
        | {"SLURM_SUBMIT_DIR": str(REPOSITORY), "PROCESSES_PER_NODE": "1", "CLUSTER": str(cluster), "PATH": path}
        | more
    )


@pytest.mark.slow
def test_a_slurm_job_ends_before_its_time_limit_and_goes_on_from_the_queue(cluster, tiny_corpus, tmp_path):
    out, log = tmp_path / "run", tmp_path / "output.log"
    words = job(
        tiny_corpus, out, "--save-every", "1000", steps=60
    )  # so that the one checkpoint is the one of the signal
    batch = start(["bash", str(cluster / "spool.sh"), *words], log, **as_slurm(cluster))
    until(lambda: len(log_of(out)) > 15 or batch.poll() is not None, "step 15", [batch], [log])
    for task in (cluster / "tasks").read_text().split():  # as #SBATCH --signal=TERM@120 does
        os.kill(int(task), signal.SIGTERM)
    until(lambda: batch.poll() is not None, "the job to end", [batch], [log])
    assert batch.returncode == 0, said([log])
    assert (cluster / "requeued").read_text().split() == [str(os.getpid())], said([log])
    reached = log_of(out)[-1]["step"]
    assert 15 <= reached < 60
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{reached:08d}"]

    again = start(["bash", str(cluster / "spool.sh"), *words], log, **as_slurm(cluster))
    until(lambda: again.poll() is not None, "the job to end", [again], [log])
    assert again.returncode == 0, said([log])
    assert len((cluster / "requeued").read_text().split()) == 1, "a finished run went into the queue again"
    main(["pretrain", *job(tiny_corpus, tmp_path / "one", steps=60)])
    close(tmp_path / "one", out)


@pytest.mark.parametrize(("ends", "saves", "queued"), [(1, False, False), (1, True, True), (0, False, False)])
def test_a_slurm_job_is_tried_again_only_while_it_gets_further(cluster, tmp_path, ends, saves, queued):
    out = tmp_path / "run"
    checkpoint = out / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run.json").touch()
    later = out / "checkpoints" / "step-00000020"
    saving = f"mkdir '{later}' && touch '{later}/run.json'\n" if saves else ""
    (cluster / "srun").write_text(f"#!/usr/bin/env bash\n{saving}exit {ends}\n")
    done = subprocess.run(
        ["bash", str(cluster / "spool.sh"), "small", f"--out={out}"],
        env=environment(**as_slurm(cluster)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == queued
    assert (cluster / "requeued").exists() == queued
    assert queued or "no checkpoint further than before" in done.stderr


def test_a_slurm_job_without_a_folder_is_refused(cluster):
    done = subprocess.run(
        ["bash", str(cluster / "spool.sh"), "small"],
        env=environment(**as_slurm(cluster)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--out is missing" in done.stderr


def test_the_slurm_script_is_sound_shell():
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")], check=True)
    assert (LAUNCH / "slurm.sh").stat().st_mode & stat.S_IXUSR
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, str(LAUNCH / "slurm.sh")], check=True)
