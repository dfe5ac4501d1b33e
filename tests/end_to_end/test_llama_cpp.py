"""The shipped model in llama.cpp: the same probabilities, losses and answers as ours, whole and pruned in three ways."""
import json
import subprocess

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import llama_cpp
from program import BUILD, ROOT, moetrim, moetrim_json

MODEL = ROOT / "demo/model"
TASKS = sorted(file.name.removesuffix(".test.jsonl") for file in (ROOT / "calibration").glob("*.test.jsonl"))
SAMPLES = 8
ANSWERS = 4
END = 2  # <|im_end|>
# Upper bounds of the mean KL in nats against the f32 file; what was measured is in docs/gguf.md.
LOSSY = {"bf16": 1e-3, "f16": 1e-4, "q8_0": 1e-3}


def export(folder, out, *more, dtype="f32"):
    moetrim("export", folder, "--format", "gguf", "--dtype", dtype, "-o", out, *more)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The model as GGUF, and for a plan of half the experts: the written checkpoint, and the three ways to its GGUF."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    moetrim("calibrate", MODEL, "--task", ROOT / "calibration/arithmetic.jsonl", "--samples", 64, "-o", folder / "stats")
    plan = folder / "plan.json"
    moetrim("plan", folder / "stats", "--method", "easy-ep", "--keep", 16, "-o", plan)
    export(MODEL, folder / "whole.gguf")
    moetrim("rewrite", MODEL, "--plan", plan, "-o", folder / "pruned")
    export(folder / "pruned", folder / "rewritten.gguf")
    export(MODEL, folder / "on_the_way.gguf", "--plan", plan)
    moetrim("rewrite", folder / "whole.gguf", "--plan", plan, "-o", folder / "as_bytes.gguf")
    return folder


@pytest.fixture(scope="module")
def samples(work):
    """Unseen samples of every task, rendered and tokenised by llama.cpp: (prompt, whole) ids."""
    with llama_cpp.Model(work / "whole.gguf") as model:
        def ids(row, answered):
            messages = [{"role": "user", "content": row["prompt"]}]
            messages += [{"role": "assistant", "content": row["response"]}] * answered
            return model.tokenize(model.apply_chat_template(messages, add_generation_prompt=not answered), add_special=True)
        return {task: [(ids(row, False), ids(row, True)) for row in map(json.loads, lines(task)[:SAMPLES])] for task in TASKS}


def lines(task):
    return (ROOT / f"calibration/{task}.test.jsonl").read_text().splitlines()


def evaluate(checkpoint, tasks, samples, *more):
    files = [option for task in tasks for option in ("--task", ROOT / f"calibration/{task}.test.jsonl")]
    return moetrim_json("evaluate", checkpoint, *files, "--samples", samples, "--dtype", "fp32", *more)["tasks"]


def our_logits(checkpoint, sequences, folder):
    (folder / "ids.json").write_text(json.dumps(sequences))
    subprocess.run([BUILD / "tests/forward_probe", checkpoint, folder / "ids.json", "fp32", folder / "logits.safetensors"], check=True)
    return load_file(folder / "logits.safetensors")["logits"]


def their_logits(file, sequences):
    with llama_cpp.Model(file) as model:
        return np.concatenate([model.logits(ids) for ids in sequences])


@pytest.mark.parametrize("checkpoint, file", [(MODEL, "whole.gguf"), ("pruned", "rewritten.gguf")])
def test_probabilities_and_losses(checkpoint, file, work, samples, tmp_path):
    sequences = [whole for task in TASKS for _, whole in samples[task]]
    theirs = their_logits(work / file, sequences)
    ours = our_logits(work / checkpoint, sequences, tmp_path)
    assert len(theirs) > 1500
    print(f"KL {llama_cpp.divergence(ours, theirs):.1e}, agreement {llama_cpp.agreement(ours, theirs):.4f}")
    assert llama_cpp.agreement(ours, theirs) >= 0.999
    assert llama_cpp.divergence(ours, theirs) <= 1e-6
    # evaluate reads the text itself: the same tokens, and the same loss, from the same rows.
    start = 0
    evaluated = evaluate(work / checkpoint, TASKS, SAMPLES)
    for task, result in zip(TASKS, evaluated):
        loss, tokens = 0.0, 0
        for _, whole in samples[task]:
            rows = llama_cpp.log_probabilities(theirs[start:start + len(whole)])
            start += len(whole)
            loss -= rows[np.arange(len(whole) - 1), whole[1:]].sum()
            tokens += len(whole) - 1
        assert (result["tokens"], result["loss"]) == (tokens, pytest.approx(loss / tokens, rel=1e-5))


def answers(file, prompts):
    with llama_cpp.Model(file) as model:
        return [model.greedy(prompt, 64, (END,)) for prompt in prompts]


def our_answers(checkpoint, prompts, folder):
    """They go on behind the end of an answer, which is cut here."""
    (folder / "prompts.json").write_text(json.dumps(prompts))
    done = subprocess.run([BUILD / "tests/generate_probe", checkpoint, folder / "prompts.json", "64"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [ids[:ids.index(END) + 1] if END in ids else ids for ids in json.loads(done.stdout)]


def solution(answer):
    return answer.rsplit("#### ", 1)[-1].strip()


@pytest.mark.parametrize("checkpoint, file, tasks", [(MODEL, "whole.gguf", TASKS), ("pruned", "rewritten.gguf", ["arithmetic"])])
def test_greedy_answers(checkpoint, file, tasks, work, samples, tmp_path):
    prompts = [prompt for task in tasks for prompt, _ in samples[task][:ANSWERS]]
    theirs = answers(work / file, prompts)
    assert theirs == our_answers(work / checkpoint, prompts, tmp_path)
    with llama_cpp.Model(work / file) as model:
        right = sum(solution(model.detokenize(answer[:-1])) == solution(json.loads(row)["answer"])
                    for answer, row in zip(theirs, [row for task in tasks for row in lines(task)[:ANSWERS]]))
    assert right == sum(task["correct"] for task in evaluate(work / checkpoint, tasks, ANSWERS, "--exact-match")) >= 0.9 * len(prompts)


def test_three_ways_to_a_pruned_file(work, samples):
    """Rewriting before the export, while exporting, and in the GGUF file: the same tensors and keys, and half the experts."""
    files = [gguf.GGUFReader(work / name) for name in ("rewritten.gguf", "on_the_way.gguf", "as_bytes.gguf")]
    tensors = [{t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in file.tensors} for file in files]
    assert tensors[0] == tensors[1] == tensors[2]
    # Where a file came from, and what it is called.
    keys = [{name: field.contents() for name, field in file.fields.items()
             if name.split(".")[0] not in ("GGUF", "moetrim", "general")} for file in files]
    assert keys[0] == keys[1] == keys[2]
    assert keys[0]["qwen3moe.expert_count"] == 16
    sequences = [whole for _, whole in samples["arithmetic"]]
    logits = [their_logits(work / name, sequences) for name in ("rewritten.gguf", "as_bytes.gguf")]
    assert np.array_equal(*logits)


@pytest.mark.parametrize("dtype", LOSSY)
def test_other_types_are_near(dtype, work, samples, tmp_path):
    export(MODEL, tmp_path / "m.gguf", dtype=dtype)
    sequences = [whole for task in TASKS for _, whole in samples[task][:3]]
    reference = their_logits(work / "whole.gguf", sequences)
    theirs = their_logits(tmp_path / "m.gguf", sequences)
    print(f"{dtype}: KL {llama_cpp.divergence(theirs, reference):.1e}, agreement {llama_cpp.agreement(theirs, reference):.4f}")
    assert llama_cpp.divergence(theirs, reference) <= LOSSY[dtype]
