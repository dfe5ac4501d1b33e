"""The batch scripts on a Slurm of one node, started in a temporary folder."""
import getpass
import os
import shutil
import socket
import subprocess
import time

import pytest

import models
from program import MOETRIM, ROOT, folder_bytes, moetrim, write_task

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_until(condition, seconds):
    end = time.time() + seconds
    while not condition():
        if time.time() > end:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Starts munge and Slurm's two daemons; gives the environment in which its commands find them."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
    missing = [p for p in programs if shutil.which(p, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports(2)))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "MOETRIM": str(MOETRIM),
                   "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    daemons = []

    def start(*command):
        with open(folder / "daemons.log", "a") as log:
            daemons.append(subprocess.Popen([str(c) for c in command], env=environment, stdout=log, stderr=log))

    def answers(*command):
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    try:
        start("munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed")
        wait_until((folder / "munge.socket").exists, 10)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)
        if not wait_until(lambda: "idle" in answers("sinfo", "--noheader"), 30):
            pytest.skip("Slurm does not run here: " + (folder / "daemons.log").read_text()[-500:])
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    models.make(folder / "m", "qwen3_moe")
    write_task(folder / "t.jsonl", models.sequences(1, [33, 7, 18, 41, 12]))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "-o", folder / "one.stats")
    return folder


def finish(slurm, folder, *command):
    """Submits and waits until the queue is empty."""
    subprocess.run([str(c) for c in command], env=slurm, cwd=folder, check=True)
    assert wait_until(lambda: not subprocess.run(["squeue", "--noheader"], env=slurm, capture_output=True, text=True, check=True).stdout, 120)
    return "\n".join(f"{log}:\n{log.read_text()}" for log in folder.glob("*.log"))


def test_an_array_of_shares(slurm, run, tmp_path):
    logs = finish(slurm, tmp_path, ROOT / "recipes/slurm/slices.sh", 4, run / "m", tmp_path / "s.stats", "--task", run / "t.jsonl")
    assert (tmp_path / "s.stats").exists(), logs
    assert folder_bytes(tmp_path / "s.stats") == folder_bytes(run / "one.stats")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["s.stats"]


def test_a_job_of_ranks(slurm, run, tmp_path):
    logs = finish(slurm, tmp_path, "sbatch", "--ntasks=2", "--output=ranks.log", ROOT / "recipes/slurm/ranks.sh", "calibrate", run / "m",
                  "--task", run / "t.jsonl", "-o", tmp_path / "s.stats")
    assert (tmp_path / "s.stats").exists(), logs
    assert folder_bytes(tmp_path / "s.stats") == folder_bytes(run / "one.stats")
