"""The algorithm files as a user runs them: outputs, determinism, kill -9 and --resume, sharing a VQ-VAE, bad input."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ALGORITHMS, ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqvae import VQVAE

SMALL = [
    "--vqvae-steps=40",
    "--total-steps=60",
    "--hidden-dim=16",
    "--codebook-size=8",
    "--eval-every=20",
    "--eval-episodes=2",
    "--final-eval-episodes=3",
]


WITH_BEHAVIOR = ("saq_iql", "saq_cql", "saq_brac")  # the files that train a behavior policy before Q-learning


def command(*flags, algorithm="saq_cql"):
    return [sys.executable, str(ROOT / f"{algorithm}.py"), "--device=cpu", *map(str, flags)]


def small(algorithm):
    return [*SMALL, "--bc-steps=30"] if algorithm in WITH_BEHAVIOR else SMALL


def run(*flags, folder=None, env=None, code=0, algorithm="saq_cql"):
    environment = os.environ | (env or {})
    done = subprocess.run(
        command(*flags, algorithm=algorithm), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def only_run(runs: Path) -> Path:
    (folder,) = runs.iterdir()
    return folder


def same(a: Path, b: Path):
    """Weights, evaluations and results of two runs are equal to the bit."""
    for name in ("vqvae.pt", "model.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        first, second = ({k: v for k, v in x.items() if k not in ("args", "config")} for x in (first, second))
        assert first.keys() == second.keys()
        for module in first:
            for key, value in first[module].items():
                assert torch.equal(value, second[module][key]), (name, module, key)
    first, second = (np.load(folder / "eval.npz") for folder in (a, b))
    for key in first.files:
        np.testing.assert_array_equal(first[key], second[key])
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (a, b))
    timed = ("wall_clock_seconds", "training_seconds")
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory):
    """By algorithm: the folder of one small run with every output, and what it printed."""
    finished = {}

    def run_once(algorithm):
        if algorithm not in finished:
            folder = tmp_path_factory.mktemp(algorithm)
            video = ["--capture-video"] * (algorithm == "saq_cql")
            done = run(*small(algorithm), *video, folder=folder, algorithm=algorithm)
            finished[algorithm] = only_run(folder / "runs"), done
        return finished[algorithm]

    return run_once


@pytest.fixture(scope="module")
def finished(runs_of):
    return runs_of("saq_cql")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_prints_its_story_and_no_noise(runs_of, algorithm):
    _, done = runs_of(algorithm)
    lines = done.stdout.splitlines()
    name = algorithm.upper().replace("_", "-")
    assert "fetch-pick-and-place-demo-v0.hdf5: 21673 transitions, 323 terminal, 600 trajectories" in lines[0]
    assert any(line.startswith("bc 60/60" if algorithm == "saq_bc" else "rl 60/60") for line in lines)
    assert any(line.startswith("bc 30/30") for line in lines) == (algorithm in WITH_BEHAVIOR)
    assert any(line.startswith("dataset ") for line in lines)
    for way in ("mean", "greedy", "sampled"):
        assert any(line.startswith(f"{name}, {way} ") for line in lines)
    assert done.stderr == ""


MODULES = {
    "saq_bc": {"behavior"},
    "saq_iql": {"q", "v", "behavior"},
    "saq_cql": {"q", "behavior"},
    "saq_brac": {"q", "behavior"},
}
LOSSES = {
    "saq_bc": {"loss"},
    "saq_iql": {"bc_loss", "v_loss", "q_loss", "q_values"},
    "saq_cql": {"bc_loss", "td_loss", "cross_entropy", "q_values"},
    "saq_brac": {"bc_loss", "loss", "q_values"},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_leaves_the_documented_files(runs_of, algorithm):
    folder, _ = runs_of(algorithm)
    assert folder.name.startswith(f"fetch-pick-and-place-demo-v0__{algorithm}__1__")
    description = json.loads((folder / "args.json").read_text())
    assert description["args"]["total_steps"] == 60
    assert description["versions"]["torch"].startswith("2.")
    result = json.loads((folder / "result.json").read_text())
    assert (result["env_id"], result["algorithm"], result["seed"]) == ("fetch-pick-and-place-demo-v0", algorithm, 1)
    assert len(result["normalized_scores"]) == 3
    assert result["normalized_score"] == pytest.approx(np.mean(result["normalized_scores"]))
    ways = ["greedy", "mean", "sampled"] if algorithm == "saq_bc" else ["mean", "greedy", "sampled"]
    assert list(result["scores"]) == ways  # that which acted, then the others
    assert result["scores"][ways[0]] == result["normalized_scores"]
    assert all(len(scores) == 3 for scores in result["scores"].values())
    assert 0 < result["training_seconds"] <= result["wall_clock_seconds"]
    assert result["dataset_normalized_return"] == pytest.approx(53.8, abs=0.1)
    assert result["total_steps"] == 60 and result["wall_clock_seconds"] > 0
    assert not list(folder.glob("part-*"))
    if algorithm == "saq_cql":
        assert (folder / "video.gif").read_bytes().startswith(b"GIF89a")

    evaluations = np.load(folder / "eval.npz")
    assert evaluations["step"].tolist() == [20, 20, 40, 40, 60, 60, 60]
    assert evaluations["seeds"].tolist() == [10_000, 10_001, 10_000, 10_001, 10_000, 10_001, 10_002]
    np.testing.assert_array_equal(evaluations["scores"][-3:], result["normalized_scores"])
    assert (evaluations["lengths"] <= 50).all()

    model = torch.load(folder / "model.pt", weights_only=True)
    assert model["args"] == description["args"]
    assert model.keys() - {"args"} == MODULES[algorithm]
    assert VQVAE.load(folder / "vqvae.pt").config["codebook_size"] == 8

    events = EventAccumulator(str(folder))
    events.Reload()
    assert {
        "charts/SPS",
        "eval/normalized_score",
        "eval/episodic_return",
        "eval/episodic_length",
        *(f"losses/{name}" for name in LOSSES[algorithm]),
        "vqvae/reconstruction",
        "vqvae/commitment",
    } <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("eval/normalized_score")] == [20, 40, 60]
    assert description["command"][1:3] == ["--device=cpu", "--vqvae-steps=40"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_command_gives_the_same_bits(runs_of, tmp_path, algorithm):
    folder, _ = runs_of(algorithm)
    run(*small(algorithm), folder=tmp_path, algorithm=algorithm)
    same(folder, only_run(tmp_path / "runs"))


@pytest.mark.parametrize("script", ["saq_bc.py", "benchmark/baselines/cql.py"])
def test_subnormal_numbers_which_are_slow_are_flushed_to_zero(script, tmp_path):
    path = ROOT / script
    program = f"import runpy, sys, torch; sys.argv[0] = {str(path)!r}; sys.path.insert(0, {str(path.parent)!r}); "
    program += "runpy.run_path(sys.argv[0], run_name='__main__'); print(torch.tensor([1e-38]) * 0.1)"
    flags = ["--total-steps=1", "--final-eval-episodes=1", *["--vqvae-steps=1"] * script.startswith("saq")]
    done = subprocess.run([sys.executable, "-c", program, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("tensor([0.])\n"), done.stdout + done.stderr


def test_a_curve_has_what_was_measured_at_the_step(tmp_path):
    """Metrics of all rows are taken every 500 steps; the last step, 600, has those of the batch alone."""
    run(*SMALL, "--vqvae-steps=600", folder=tmp_path)
    events = EventAccumulator(str(only_run(tmp_path / "runs"))).Reload()
    steps = {name: [event.step for event in events.Scalars(f"vqvae/{name}")] for name in ("loss", "perplexity")}
    assert steps == {"loss": [500, 600], "perplexity": [500]}


def test_another_seed_gives_other_bits(finished, tmp_path):
    run(*small("saq_cql"), "--seed=2", folder=tmp_path)
    folders = finished[0], only_run(tmp_path / "runs")
    first, second = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in folders)
    for name in ("vqvae.codebook", "behavior.1.weight", "q.1.weight"):
        assert not torch.equal(first["networks"][name], second["networks"][name])
    assert not torch.equal(first["generator"], second["generator"])
    assert np.load(folders[1] / "eval.npz")["seeds"][-3:].tolist() == [20_000, 20_001, 20_002]


def test_the_algorithms_train_the_same_vqvae_and_share_it(runs_of, tmp_path):
    files = [runs_of(algorithm)[0] / "vqvae.pt" for algorithm in ALGORITHMS]
    given = shutil.copy(files[0], tmp_path)
    done = run(*small("saq_iql"), f"--vqvae-path={given}", folder=tmp_path, algorithm="saq_iql")
    assert "vqvae 40/40" not in done.stdout and "vqvae_steps" not in done.stdout
    folder = only_run(tmp_path / "runs")
    os.remove(given)
    run("--resume", folder, "--total-steps=80", algorithm="saq_iql")  # the checkpoint has it
    files.append(folder / "vqvae.pt")
    first, *others = (torch.load(path, weights_only=True)["weights"] for path in files)
    assert all(torch.equal(value, other[key]) for other in others for key, value in first.items())


def longer(algorithm, vqvae_steps):
    """Flags of a run that is long enough to be killed after the curves of step 500, before the next checkpoint."""
    flags = [f"--vqvae-steps={vqvae_steps}", "--total-steps=1000", "--checkpoint-every=300", "--restart-every=150"]
    flags += ["--eval-every=600", "--eval-episodes=2", "--final-eval-episodes=2", "--hidden-dim=16"]
    return [*flags, "--codebook-size=8", *(["--bc-steps=1000"] if algorithm in WITH_BEHAVIOR else [])]


def curves(folder):
    """Steps and values by tag as they lie in the files, but for the speeds."""
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "SPS" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    "algorithm, phase",
    [
        ("saq_cql", "vqvae"),
        ("saq_bc", "bc"),
        ("saq_iql", "rl"),
        ("saq_brac", "bc"),
    ],
)
def test_killed_in_any_phase_and_resumed_gives_the_same_bits_and_curves(tmp_path, algorithm, phase):
    flags = longer(algorithm, 1000 if phase == "vqvae" else 400)
    run(*flags, "--runs-dir=whole", folder=tmp_path, algorithm=algorithm)
    whole = only_run(tmp_path / "whole")
    child = command(*flags, algorithm=algorithm)
    process = subprocess.Popen(child, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert any(line.startswith(f"{phase} 500/") for line in process.stdout), "it ended before it could be killed"
    time.sleep(0.05)  # some steps, fewer than are left to the checkpoint at 600
    process.kill()
    process.wait()
    folder = only_run(tmp_path / "runs")
    assert 300 <= torch.load(folder / "checkpoint.pt", weights_only=True)["steps_done"][phase] < 1000
    assert not (folder / "result.json").exists()
    run("--resume", folder, algorithm=algorithm)
    assert only_run(tmp_path / "runs") == folder
    same(whole, folder)
    assert curves(whole) == curves(folder)
    for name in LOSSES[algorithm] - {"bc_loss"}:
        assert [step for step, _ in curves(folder)[f"losses/{name}"]] == [500, 1000]


def test_resume_can_extend_a_run_at_another_rate(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    run("--resume", folder, "--total-steps=80", "--final-eval-episodes=4", "--learning-rate=1e-5")
    result = json.loads((folder / "result.json").read_text())
    assert result["total_steps"] == 80 and len(result["normalized_scores"]) == 4
    *_, q_adam = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizers"]
    assert {state["step"].item() for state in q_adam.values()} == {80}
    weights = [torch.load(f / "checkpoint.pt", weights_only=True)["networks"] for f in (finished[0], folder)]
    moved = [(weights[1][name] - weights[0][name]).abs().max() for name in weights[0] if name.startswith("q.")]
    assert 0 < max(moved) < 1e-3  # 20 steps of Adam at 1e-5; at 3e-3 they go 100 times as far
    assert np.load(folder / "eval.npz")["step"].tolist() == [20, 20, 40, 40, 80, 80, 80, 80]


def test_a_finished_run_can_act_in_another_way_and_has_no_point_twice(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    run("--resume", folder, "--acting=greedy")
    before, after = (json.loads((path / "result.json").read_text()) for path in (finished[0], folder))
    assert before["scores"] == after["scores"] and after["normalized_scores"] == before["scores"]["greedy"]
    assert [step for step, _ in curves(folder)["eval/normalized_score"]] == [20, 40, 60]


def test_a_checkpoint_of_another_device_is_resumed_with_new_draws(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    checkpoint["generator"] = torch.zeros(16, dtype=torch.uint8)  # what a GPU's has for a state
    torch.save(checkpoint, folder / "checkpoint.pt")
    run("--resume", folder, "--total-steps=80")
    assert json.loads((folder / "result.json").read_text())["total_steps"] == 80


RL = ["--value-scale=0", "--gamma=0.99", "--n-step=1"]
PAPER = {
    "saq_bc": [],
    "saq_iql": [*RL, "--tau=0.005", "--behavior-floor=-8", "--bc-steps=0"],
    "saq_cql": [*RL, "--backup=greedy", "--target-period=200", "--bc-steps=0"],
    "saq_brac": [*RL, "--tau=0.005", "--bc-steps=0"],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_papers_recipe_and_every_other_option_run(tmp_path, algorithm):
    common = [
        "--ema-decay=0",
        "--restart-every=0",
        "--no-standardize",
        "--weight-decay=1e-4",
        "--batch-size=32",
        "--no-layer-norm",
        "--no-soft-codes",
        "--learning-rate=3e-4",
        f"--acting={'greedy' if algorithm == 'saq_cql' else 'sampled'}",
    ]
    done = run(*SMALL, *common, *PAPER[algorithm], folder=tmp_path, algorithm=algorithm)
    scores = [line.partition(",")[2].split()[0] for line in done.stdout.splitlines() if line.startswith("SAQ-")]
    assert scores[0] == ("greedy" if algorithm == "saq_cql" else "sampled") and len(scores) == 3


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("algorithm", ["saq_bc", "saq_iql"])  # the VQ-VAE and both policies; Q and V
def test_compiled_steps_give_the_same_numbers(runs_of, tmp_path, algorithm):
    codes = runs_of("saq_bc")[0] / "vqvae.pt"
    own = [] if algorithm == "saq_bc" else [f"--vqvae-path={codes}"]  # compiling takes a while
    for name in ("plain", "compile"):
        compiled = ["--compile"] * (name == "compile")
        run(*small(algorithm), *own, *compiled, f"--runs-dir={name}", folder=tmp_path, algorithm=algorithm)
    first, second = (torch.load(only_run(tmp_path / n) / "model.pt", weights_only=True) for n in ("plain", "compile"))
    for module in MODULES[algorithm]:
        for key, value in first[module].items():
            torch.testing.assert_close(value, second[module][key], atol=1e-3, rtol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_on_the_gpu_is_resumed_to_the_same_bits_there_and_on_the_cpu(tmp_path, algorithm):
    run(*SMALL, folder=tmp_path, algorithm="saq_bc")
    codes = only_run(tmp_path / "runs") / "vqvae.pt"  # a given one: k-means on a GPU adds in any order
    flags = [*small(algorithm), f"--vqvae-path={codes}", "--device=cuda"]
    for steps in (60, 30):
        run(*flags, f"--total-steps={steps}", f"--runs-dir={steps}", folder=tmp_path, algorithm=algorithm)
    whole, part = (only_run(tmp_path / steps) for steps in ("60", "30"))
    run(f"--resume={part}", "--total-steps=60", "--device=cuda", algorithm=algorithm)
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, part))
    for module in MODULES[algorithm]:
        torch.testing.assert_close(first[module], second[module], rtol=0.0, atol=0.0)
    run(f"--resume={part}", "--total-steps=80", algorithm=algorithm)


def bad_input(tmp_path, finished, other_algorithm):
    """Flags and the words that the message must have, for every way to go wrong before training starts."""
    folder, _ = finished
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "args.json").write_text((folder / "args.json").read_text())
    (broken / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:1000])
    text = tmp_path / "text.hdf5"
    text.write_text("not HDF5")
    other = tmp_path / "door.hdf5"
    with h5py.File(other, "w") as file:
        for key, shape in (("observations", (9, 39)), ("actions", (9, 28)), ("rewards", (9,)), ("terminals", (9,))):
            file[key] = np.zeros(shape, np.float32)
    vqvae = f"--vqvae-path={folder / 'vqvae.pt'}"
    return {
        "unknown id": (["--env-id=hoper-medium-v2"], ["hoper-medium-v2", "hopper-medium-v2"]),
        "no network": (["--env-id=hopper-medium-v2"], ["cannot download", "hopper_medium-v2.hdf5"]),
        "no file": (["--dataset-path=nowhere.hdf5"], ["no such file", "nowhere.hdf5"]),
        "not HDF5": ([f"--dataset-path={text}"], ["not a readable HDF5 file", str(text)]),
        "other dimensions": ([f"--dataset-path={other}"], ["shape (39,)", "(28,)"]),
        "no VQ-VAE": (["--vqvae-path=nowhere.pt"], ["nowhere.pt"]),
        "file that is no VQ-VAE": ([f"--vqvae-path={folder / 'model.pt'}"], ["not a VQ-VAE"]),
        "VQ-VAE of another size": (
            [*SMALL, vqvae, "--codebook-size=16"],
            ["'codebook_size': 8", "'codebook_size': 16"],
        ),
        "VQ-VAE of another task": (
            [*SMALL, vqvae, "--env-id=door-human-v0", f"--dataset-path={other}"],
            ["'observation_dim': 28", "'observation_dim': 39"],
        ),
        "VQ-VAE of other observations": ([*SMALL, vqvae, "--no-standardize"], ["vqvae.pt", "--standardize"]),
        "resume with another VQ-VAE": ([f"--resume={folder}", vqvae], ["leave --vqvae-path out"]),
        "the same, spelled otherwise": ([f"--resume={folder}", "--vqvae_path=x.pt"], ["leave --vqvae-path out"]),
        "an infinite rate": (["--learning-rate=inf"], ["--learning-rate must be between"]),
        "resume nothing": (["--resume=nowhere"], ["not the folder of a run"]),
        "resume another algorithm": ([f"--resume={other_algorithm}"], ["saq_iql.py"]),
        "resume a truncated checkpoint": ([f"--resume={broken}"], ["checkpoint.pt is damaged"]),
        "resume another architecture": ([f"--resume={folder}", "--hidden-dim=32"], ["other networks"]),
        "no GPU": (["--device=cuda"], ["--device cuda", "no GPU"]),
        "no tracker": ([*SMALL, "--track"], ["pip install wandb"]),
        "no steps": (["--total-steps=0"], ["--total-steps must be between 1 and inf, it is 0"]),
        "gamma above 1": (["--gamma=2"], ["--gamma must be between 0 and 1, it is 2.0"]),
        "negative alpha": (["--alpha=-1"], ["--alpha must be between", "it is -1.0"]),
        "no such flag": (["--alhpa=1"], ["--alhpa"]),
    }


@pytest.mark.parametrize(
    "case",
    [
        "unknown id",
        "no network",
        "no file",
        "not HDF5",
        "other dimensions",
        "no VQ-VAE",
        "file that is no VQ-VAE",
        "VQ-VAE of another size",
        "VQ-VAE of another task",
        "VQ-VAE of other observations",
        "resume with another VQ-VAE",
        "the same, spelled otherwise",
        "an infinite rate",
        "resume nothing",
        "resume another algorithm",
        "resume a truncated checkpoint",
        "resume another architecture",
        "no GPU",
        "no tracker",
        "no steps",
        "gamma above 1",
        "negative alpha",
        "no such flag",
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(runs_of, finished, tmp_path, case):
    flags, words = bad_input(tmp_path, finished, runs_of("saq_iql")[0])[case]
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if case == "no tracker" and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix in (".pt", ".json", ".npz")}
    # a proxy that refuses stands for a machine without network
    environment = {"http_proxy": "http://127.0.0.1:9", "D4RL_DATASET_DIR": str(tmp_path / "cache")}
    done = run(*flags, folder=tmp_path, env=environment, code=2)
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    if case != "no such flag":  # tyro draws a box around its own messages
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not any((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("algorithm", ["saq_cql", "saq_brac"])  # which keep log pi_b of every row and code
def test_a_million_transitions_fit_in_twice_their_size_plus_1_and_a_half_gb(tmp_path, algorithm):
    rng, count = np.random.default_rng(0), 1_000_000
    path = tmp_path / "million.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = rng.standard_normal((count, 11), np.float32)
        file["actions"] = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
        file["rewards"] = rng.standard_normal(count, np.float32)
        file["terminals"] = np.zeros(count, bool)
        file["timeouts"] = np.arange(count) % 1000 == 999
    flags = ["--env-id=hopper-medium-v2", f"--dataset-path={path}", "--runs-dir", tmp_path / "runs", "--hidden-dim=64"]
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    flags += [flag for flag in small(algorithm) if "codebook" not in flag and "hidden" not in flag]
    child = [sys.executable, "-c", code, *command(*flags, algorithm=algorithm)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.splitlines()[-1])
    assert kilobytes * 1024 < 2 * path.stat().st_size + 3 * 2**29
