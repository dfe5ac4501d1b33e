"""Shares of a calibration, merged or by ranks: the bytes of one process; lost ranks; Slurm."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import models
from program import MOETRIM, folder_bytes, moetrim, moetrim_json, write_task

LENGTHS = [33, 7, 18, 41, 12, 25, 9, 30, 16, 22, 11, 27]


def task_arguments(folder):
    """In fp32 a row of a product has the same bits in every tile; a bf16 product in hardware does not promise that."""
    return ["--task", folder / "a.jsonl", "--task", folder / "b.jsonl", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    models.make(folder / "m", "qwen3_moe")
    write_task(folder / "a.jsonl", models.sequences(1, LENGTHS))
    write_task(folder / "b.jsonl", models.sequences(2, LENGTHS[:5]))
    for name, more in {"one": [], "second": ["--statistics", "second-order"]}.items():
        moetrim("calibrate", folder / "m", *task_arguments(folder), *more, "-o", folder / f"{name}.stats")
    return folder


def calibrate_share(run, output, share, *more):
    moetrim("calibrate", run / "m", *task_arguments(run), "--slice", share, "-o", output, *more)
    return output


def ranks_of(count, *arguments, own=None, **variables):
    """Starts the ranks without a launcher; `own` holds further arguments by rank. Rank 0 holds the store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), **variables}
    return [subprocess.Popen([MOETRIM, *map(str, [*arguments, *(own or {}).get(rank, [])])], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**common, "RANK": str(rank)})
            for rank in range(count)]


def results_of(ranks, timeout=150):
    outputs = [rank.communicate(timeout=timeout) for rank in ranks]
    return [(rank.returncode, *output) for rank, output in zip(ranks, outputs)]


def torchrun(count, *arguments):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone", "--nproc-per-node", str(count),
                           MOETRIM, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("count", [3, 4])
def test_merged_shares_are_the_bytes_of_one_process(run, tmp_path, count):
    parts = [calibrate_share(run, tmp_path / f"{i}.stats", f"{i}/{count}") for i in range(1, count + 1)]
    for name, order in {"forth": parts, "mixed": parts[2:] + parts[1::-1]}.items():
        moetrim("merge-statistics", *order, "-o", tmp_path / name)
        assert folder_bytes(tmp_path / name) == folder_bytes(run / "one.stats")
    assert "holds share 2 too" in moetrim("merge-statistics", *parts, parts[1], "-o", tmp_path / "x", code=3).stderr
    assert f"share(s) 2 of {count} are missing" in moetrim("merge-statistics", parts[0], *parts[2:], "-o", tmp_path / "x", code=3).stderr
    moetrim("merge-statistics", "--partial", *parts[1:], "-o", tmp_path / "some")
    assert "2, 3" in moetrim("plan", tmp_path / "some", "--method", "reap", "--keep", 4, "-o", tmp_path / "p.json").stderr


def test_shares_of_second_order(run, tmp_path):
    """Atoms are not kept by slice, so that their sums may differ in the last bit; plans do not."""
    parts = [calibrate_share(run, tmp_path / f"{i}.stats", f"{i}/2", "--statistics", "second-order") for i in (1, 2)]
    moetrim("merge-statistics", *parts, "-o", tmp_path / "sum.stats")
    plans = []
    for stats in (run / "second.stats", tmp_path / "sum.stats"):
        plans.append(tmp_path / f"{len(plans)}.json")
        moetrim("plan", stats, "--method", "heapr", "--keep-atoms", 0.6, "--scope", "global", "-o", plans[-1])
    assert plans[0].read_bytes() == plans[1].read_bytes()
    for file in sorted((run / "second.stats").glob("*.safetensors")):
        for name, values in load_file(file).items():
            np.testing.assert_allclose(load_file(tmp_path / "sum.stats" / file.name)[name], values, rtol=1e-6, atol=1e-12)


def test_shares_that_make_no_sense(run, tmp_path):
    arguments = ["calibrate", run / "m", *task_arguments(run), "-o", tmp_path / "x"]
    for share in ("0/4", "5/4", "1", "a/b", "1/2/3"):
        assert "--slice" in moetrim(*arguments, "--slice", share, code=2).stderr
    assert "at most 12" in moetrim(*arguments, "--slice", "1/13", code=2).stderr
    assert "--trace" in moetrim(*arguments, "--slice", "1/2", "--trace", 5, code=2).stderr


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_are_the_bytes_of_one_process(run, tmp_path, count):
    out = tmp_path / "s.stats"
    done = torchrun(count, "calibrate", run / "m", *task_arguments(run), "-o", out, "--json")
    assert json.loads(done.stdout)["statistics"] == str(out)
    assert folder_bytes(out) == folder_bytes(run / "one.stats")
    assert [p.name for p in tmp_path.iterdir()] == ["s.stats"]


def test_ranks_of_second_order_and_evaluation(run, tmp_path):
    out = tmp_path / "s.stats"
    for code, _, errors in results_of(ranks_of(2, "calibrate", run / "m", *task_arguments(run), "--statistics", "second-order", "-o", out)):
        assert code == 0, errors
    moetrim("plan", run / "one.stats", "--method", "reap", "--keep", 4, "-o", tmp_path / "p.json")
    arguments = ["evaluate", run / "m", "--plan", tmp_path / "p.json", *task_arguments(run), "--json", "--quiet"]
    (code, shown, errors), other = results_of(ranks_of(2, *arguments))
    assert code == 0 and other[:2] == (0, ""), errors + other[2]
    assert shown == moetrim(*arguments).stdout
    for file in sorted((run / "second.stats").glob("*.safetensors")):
        for name, values in load_file(file).items():
            np.testing.assert_allclose(load_file(out / file.name)[name], values, rtol=1e-6, atol=1e-12)


def test_ranks_with_different_options_are_refused(run, tmp_path):
    arguments = ["calibrate", run / "m", "--task", run / "a.jsonl", "-o", tmp_path / "s.stats", "--dtype"]
    (first, _, errors), (second, _, others) = results_of(ranks_of(2, *arguments, own={0: ["bf16"], 1: ["fp32"]}))
    assert (first, second) == (3, 1)
    assert "rank 1 cannot be merged: dtype" in errors
    assert "rank 0 of 2" in others and "dtype" in others


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Long enough to be killed in the middle."""
    folder = tmp_path_factory.mktemp("long")
    models.make(folder / "m", "qwen3_moe", num_hidden_layers=9, num_experts=24, moe_intermediate_size=96, hidden_size=128)
    write_task(folder / "t.jsonl", models.sequences(1, [200] * 30))
    moetrim("calibrate", folder / "m", "--task", folder / "t.jsonl", "--dtype", "fp32", "-o", folder / "s.stats")
    return folder


@pytest.mark.parametrize("victim, stop", [(0, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_lost_rank_ends_the_others_and_the_run_goes_on(long_run, tmp_path, victim, stop):
    out = tmp_path / "s.stats"
    arguments = ["calibrate", long_run / "m", "--task", long_run / "t.jsonl", "--dtype", "fp32", "--threads", 1, "-o", out]
    ranks = ranks_of(3, *arguments, MOETRIM_RANK_TIMEOUT="4")
    while len(list(tmp_path.glob(f"s.stats.rank-{victim}-of-3.partial/group-*"))) < 2:
        assert ranks[victim].poll() is None, ranks[victim].communicate()
        time.sleep(0.002)
    ranks[victim].send_signal(stop)
    begin = time.time()
    results = results_of(ranks)
    assert time.time() - begin < 60
    for rank, (code, _, errors) in enumerate(results):
        if rank == victim and stop == signal.SIGKILL:
            continue
        assert code == 5, errors
        assert f"rank {rank} of 3:" in errors and (f"rank {victim}" in errors), errors
    assert not out.exists()
    if stop == signal.SIGTERM:
        for code, _, errors in results_of(ranks_of(2, *arguments)):
            assert code in (1, 3) and "another number of ranks" in errors
    for code, _, errors in results_of(ranks_of(3, *arguments)):
        assert code == 0, errors
    assert folder_bytes(out) == folder_bytes(long_run / "s.stats")
    assert [p.name for p in tmp_path.iterdir()] == ["s.stats"]
