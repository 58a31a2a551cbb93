"""`python saq_cql.py` as a user runs it: outputs, determinism, kill -9 and --resume, sharing a VQ-VAE, bad input."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqvae import VQVAE

SMALL = [
    "--vqvae-steps=40",
    "--bc-steps=30",
    "--total-steps=60",
    "--hidden-dim=16",
    "--codebook-size=8",
    "--eval-every=20",
    "--eval-episodes=2",
    "--final-eval-episodes=3",
]


def command(*flags):
    return [sys.executable, str(ROOT / "saq_cql.py"), "--device=cpu", *map(str, flags)]


def run(*flags, folder=None, env=None, code=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    done = subprocess.run(command(*flags), cwd=folder, env=environment, capture_output=True, text=True)
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
    first.pop("wall_clock_seconds"), second.pop("wall_clock_seconds")
    assert first == second


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run with every output, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(*SMALL, "--capture-video", folder=folder)
    return only_run(folder / "runs"), done


def test_a_run_prints_its_story_and_no_noise(finished):
    _, done = finished
    lines = done.stdout.splitlines()
    assert lines[0].startswith("fetch-pick-and-place-demo-v0: 21673 transitions, 323 terminal, 600 episodes")
    assert any(line.startswith("rl 60/60") for line in lines)
    assert any(line.startswith("dataset") for line in lines)
    assert any(line.startswith("SAQ-CQL") for line in lines)
    assert any(line.startswith("imitation") for line in lines)
    assert done.stderr == ""


def test_a_run_leaves_the_documented_files(finished):
    folder, _ = finished
    assert folder.name.startswith("fetch-pick-and-place-demo-v0__saq_cql__1__")
    description = json.loads((folder / "args.json").read_text())
    assert description["args"]["total_steps"] == 60
    assert description["versions"]["torch"].startswith("2.")
    result = json.loads((folder / "result.json").read_text())
    assert (result["env_id"], result["algorithm"], result["seed"]) == ("fetch-pick-and-place-demo-v0", "saq_cql", 1)
    assert len(result["normalized_scores"]) == 3
    assert result["normalized_score"] == pytest.approx(np.mean(result["normalized_scores"]))
    assert result["dataset_normalized_return"] == pytest.approx(53.8, abs=0.1)
    assert result["total_steps"] == 60 and result["wall_clock_seconds"] > 0
    assert not list(folder.glob("*.part"))
    assert (folder / "video.gif").read_bytes().startswith(b"GIF89a")

    evaluations = np.load(folder / "eval.npz")
    assert evaluations["step"].tolist() == [20, 20, 40, 40, 60, 60, 60]
    assert evaluations["seeds"].tolist() == [10_000, 10_001, 10_000, 10_001, 10_000, 10_001, 10_002]
    np.testing.assert_array_equal(evaluations["scores"][-3:], result["normalized_scores"])
    assert (evaluations["lengths"] <= 50).all()

    model = torch.load(folder / "model.pt", weights_only=True)
    assert model["args"] == description["args"]
    assert VQVAE.load(folder / "vqvae.pt").config["codebook_size"] == 8

    events = EventAccumulator(str(folder))
    events.Reload()
    assert {
        "charts/SPS",
        "eval/normalized_score",
        "eval/episodic_return",
        "eval/episodic_length",
        "losses/td_loss",
        "losses/cql_loss",
        "losses/bc_loss",
        "vqvae/reconstruction_error",
        "vqvae/codes_used",
        "vqvae/perplexity",
    } <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("eval/normalized_score")] == [20, 40, 60]


def test_the_same_command_gives_the_same_bits_and_another_seed_does_not(finished, tmp_path):
    folder, _ = finished
    run(*SMALL, folder=tmp_path)
    again = only_run(tmp_path / "runs")
    same(folder, again)
    run(*SMALL, "--seed=2", "--runs-dir=other", folder=tmp_path)
    with pytest.raises(AssertionError):
        same(folder, only_run(tmp_path / "other"))


def test_a_trained_vqvae_is_reused(finished, tmp_path):
    folder, _ = finished
    done = run(*SMALL, f"--vqvae-path={folder / 'vqvae.pt'}", folder=tmp_path)
    assert "vqvae 40/40" not in done.stdout
    first, second = (torch.load(f / "vqvae.pt", weights_only=True) for f in (folder, only_run(tmp_path / "runs")))
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())


LONGER = ["--vqvae-steps=2000", "--bc-steps=2000", "--total-steps=2000", "--checkpoint-every=100", "--eval-every=600"]
LONGER += [
    "--hidden-dim=16",
    "--codebook-size=8",
    "--eval-episodes=2",
    "--final-eval-episodes=2",
    "--restart-every=150",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(*LONGER, folder=folder)
    return only_run(folder / "runs")


@pytest.mark.parametrize("phase", ["vqvae", "bc", "rl"])
def test_killed_in_any_phase_and_resumed_gives_the_same_bits(uninterrupted, tmp_path, phase):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*LONGER), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    done = 0
    while done < 300:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
        for path in tmp_path.glob("runs/*/checkpoint.pt"):
            done = torch.load(path, weights_only=True)["steps_done"].get(phase, 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = only_run(tmp_path / "runs")
    assert 300 <= torch.load(folder / "checkpoint.pt", weights_only=True)["steps_done"][phase] < 2000
    assert not (folder / "result.json").exists()
    run("--resume", folder)
    same(uninterrupted, folder)
    assert only_run(tmp_path / "runs") == folder


def test_resume_can_extend_a_run(finished, tmp_path):
    run(*SMALL, folder=tmp_path)
    folder = only_run(tmp_path / "runs")
    run("--resume", folder, "--total-steps=80", "--final-eval-episodes=4")
    result = json.loads((folder / "result.json").read_text())
    assert result["total_steps"] == 80 and len(result["normalized_scores"]) == 4


def test_the_papers_recipe_and_every_other_option_run(tmp_path):
    paper = ["--value-scale=0", "--act-temperature=0", "--restart-every=0", "--no-standardize", "--no-layer-norm"]
    run(*SMALL, *paper, "--adam-b1=0.001", "--weight-decay=1e-4", "--bc-steps=0", "--batch-size=32", folder=tmp_path)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_losses_give_the_same_numbers(finished, tmp_path):
    folder, _ = finished
    run(*SMALL, "--compile", folder=tmp_path)
    first, second = (torch.load(f / "model.pt", weights_only=True)["q"] for f in (folder, only_run(tmp_path / "runs")))
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=1e-3, rtol=1e-2)


def test_ctrl_c_says_how_to_continue(tmp_path):
    process = subprocess.Popen(
        command(*LONGER), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not process.stdout.readline().startswith("vqvae"):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1
    assert error.startswith("interrupted; to continue: python ") and "--resume runs" in error
    assert "Traceback" not in error


def bad_input(tmp_path, finished):
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
        "no VQ-VAE": (["--vqvae-path=nowhere.pt"], ["--vqvae-path", "nowhere.pt"]),
        "file that is no VQ-VAE": ([f"--vqvae-path={folder / 'model.pt'}"], ["not a VQ-VAE"]),
        "VQ-VAE of another size": ([*SMALL, vqvae, "--codebook-size=16"], ["codebook_size 8", "16"]),
        "VQ-VAE of another task": (
            [*SMALL, vqvae, "--env-id=door-human-v0", f"--dataset-path={other}"],
            ["observation_dim 28", "39"],
        ),
        "resume nothing": (["--resume=nowhere"], ["not the folder of a run"]),
        "resume a truncated checkpoint": ([f"--resume={broken}"], ["not a readable checkpoint"]),
        "resume another architecture": ([f"--resume={folder}", "--hidden-dim=32"], ["another architecture"]),
        "no GPU": (["--device=cuda"], ["--device cuda", "no GPU"]),
        "no tracker": ([*SMALL, "--track"], ["pip install wandb"]),
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
        "resume nothing",
        "resume a truncated checkpoint",
        "resume another architecture",
        "no GPU",
        "no tracker",
        "no such flag",
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(finished, tmp_path, case):
    flags, words = bad_input(tmp_path, finished)[case]
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


def test_a_million_transitions_fit_in_their_size_plus_1_gb(tmp_path):
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
    child = [sys.executable, "-c", code, *command(*SMALL, *flags)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.splitlines()[-1])
    assert kilobytes * 1024 < path.stat().st_size + 2**30
