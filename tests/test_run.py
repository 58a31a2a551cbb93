"""The algorithm files as a user runs them: outputs, determinism, kill and continue, sharing a VQ-VAE, bad input."""

import importlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import h5py
import numpy as np
import pytest
import torch
from conftest import ALGORITHMS, ROOT
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqvae import VQVAE

SMALL = {
    "vqvae_steps": 40,
    "bc_steps": 30,
    "rl_steps": 60,
    "hidden_dim": 16,
    "codebook_size": 8,
    "eval_every": 20,
    "eval_episodes": 2,
    "final_eval_episodes": 3,
    "device": "cpu",
}
MODULES = {
    "saq_bc": {"behavior"},
    "saq_iql": {"q", "behavior"},
    "saq_cql": {"q", "behavior"},
    "saq_brac": {"q", "behavior"},
}
METRICS = {
    "saq_bc": {"bc/loss"},
    "saq_iql": {"bc/loss", "rl/v_loss", "rl/q_loss", "rl/q_values"},
    "saq_cql": {"bc/loss", "rl/td_loss", "rl/penalty", "rl/q_values"},
    "saq_brac": {"bc/loss", "rl/loss", "rl/q_values"},
}


def small(algorithm, **changes):
    """Arguments of a small run; SAQ-BC has no reinforcement learning, and its policy takes its steps."""
    arguments = {**SMALL, **changes}
    if algorithm == "saq_bc":
        arguments["bc_steps"] = arguments["rl_steps"]
    names = {field.name for field in fields(importlib.import_module(algorithm).Args)}
    return {name: value for name, value in arguments.items() if name in names}


def run(algorithm, run_dir, **changes):
    """Run a file in this process. Returns its result."""
    module = importlib.import_module(algorithm)
    return module.main(module.Args(**small(algorithm, **changes), run_dir=str(run_dir)))


def command(algorithm, run_dir, **changes):
    """The words of the same run as a command line."""
    words = [sys.executable, str(ROOT / f"{algorithm}.py"), f"--run-dir={run_dir}"]
    for name, value in small(algorithm, **changes).items():
        words.append(f"--{name.replace('_', '-')}={value}")
    return words


def fails_with_one_line(capsys, function, *arguments, **changes):
    """The one line that a run prints before it exits with code 2."""
    with pytest.raises(SystemExit) as stopped:
        function(*arguments, **changes)
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def assert_same_run(a, b):
    """Weights, evaluations, curves and results of two runs are equal to the bit; times and speeds aside."""
    for name in ("vqvae.pt", "model.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        weights = [key for key, value in first.items() if isinstance(value, dict) and key not in ("args", "config")]
        for module in weights:
            for key, value in first[module].items():
                assert torch.equal(value, second[module][key]), (name, module, key)
    first, second = (np.load(folder / "eval.npz") for folder in (a, b))
    assert set(first.files) == {"step", "seeds", "returns", "lengths", "scores"} == set(second.files)
    for key in first.files:
        np.testing.assert_array_equal(first[key], second[key])
    assert curves(a) == curves(b)
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (a, b))
    for result in (first, second):
        del result["wall_clock_seconds"]
    assert first == second


def curves(folder):
    """Steps and values by tag as they are in the files, without speeds."""
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "charts/SPS"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished small run of each algorithm."""
    folder = tmp_path_factory.mktemp("finished")
    for algorithm in ALGORITHMS:
        run(algorithm, folder / algorithm)
    return folder


@pytest.fixture
def finished_cql(finished, tmp_path):
    """A copy of the finished run of SAQ-CQL."""
    return shutil.copytree(finished / "saq_cql", tmp_path / "saq_cql")


# ---- What a run leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_writes_the_documented_files(finished, algorithm):
    folder = finished / algorithm
    description = json.loads((folder / "args.json").read_text())
    assert description["algorithm"] == algorithm
    assert description["args"]["hidden_dim"] == 16
    assert description["versions"]["torch"].startswith("2.")
    assert len(description["git_commit"]) in (0, 40)
    assert platform.machine() in description["machine"] or torch.cuda.is_available()

    result = json.loads((folder / "result.json").read_text())
    assert (result["env_id"], result["algorithm"], result["seed"]) == ("fetch-pick-and-place-demo-v0", algorithm, 1)
    assert result["action_mode"] == ("greedy" if algorithm == "saq_bc" else "mean")
    assert len(result["normalized_scores"]) == 3
    assert result["normalized_score"] == pytest.approx(np.mean(result["normalized_scores"]))
    assert result["dataset_normalized_return"] == pytest.approx(53.8, abs=0.1)
    assert result["total_steps"] == 60
    assert result["wall_clock_seconds"] > 0

    evaluations = np.load(folder / "eval.npz")
    assert evaluations["step"].tolist() == [20, 20, 40, 40, 60, 60, 60]
    assert evaluations["seeds"].tolist() == [10_000, 10_001, 10_000, 10_001, 10_000, 10_001, 10_002]
    np.testing.assert_array_equal(evaluations["scores"][-3:], result["normalized_scores"])

    model = torch.load(folder / "model.pt", weights_only=True)
    assert model.keys() == {"algorithm", "args", "action_low", "action_high"} | MODULES[algorithm]
    assert model["algorithm"] == algorithm
    assert (model["action_low"], model["action_high"]) == ([-1.0] * 4, [1.0] * 4)
    assert VQVAE.load(folder / "vqvae.pt").config["codebook_size"] == 8
    assert not list(folder.glob("*.part"))

    points = curves(folder)
    evaluation = {"eval/normalized_score", "eval/episodic_return", "eval/episodic_length"}
    assert METRICS[algorithm] | evaluation | {"vqvae/loss", "vqvae/reconstruction", "vqvae/commitment"} == set(points)
    assert [step for step, _ in points["eval/normalized_score"]] == [20, 40, 60]


def test_what_a_command_prints(tmp_path):
    words = [sys.executable, ROOT / "saq_iql.py", *command("saq_iql", "unused", capture_video=True)[3:]]
    words[-1] = "--capture-video"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert "fetch-pick-and-place-demo-v0.hdf5: 21673 transitions, 323 terminal, 600 trajectories" in lines[0]
    (folder,) = (tmp_path / "runs").iterdir()
    assert lines[1] == f"writing to runs/{folder.name}"
    assert folder.name.startswith("fetch-pick-and-place-demo-v0__saq_iql__1__")
    for start in ("vqvae 40/40: loss ", "bc 30/30: loss ", "rl 60/60: v_loss ", "dataset ", "SAQ-IQL, mean "):
        assert any(line.startswith(start) for line in lines), (start, done.stdout)
    assert (folder / "video.gif").read_bytes().startswith(b"GIF89a")


def test_curves_have_what_was_measured_at_their_step(tmp_path):
    """Metrics of the whole dataset are measured every 500 steps; the last step, 600, has those of its batch."""
    run("saq_bc", tmp_path, vqvae_steps=600)
    points = curves(tmp_path)
    assert [step for step, _ in points["vqvae/loss"]] == [500, 600]
    assert [step for step, _ in points["vqvae/perplexity"]] == [500]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_command_gives_the_same_bits(finished, tmp_path, algorithm):
    run(algorithm, tmp_path / "again")
    assert_same_run(finished / algorithm, tmp_path / "again")


def test_another_seed_changes_networks_batches_and_episodes(finished, tmp_path):
    run("saq_cql", tmp_path, seed=2)
    first, second = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (finished / "saq_cql", tmp_path))
    for name in ("vqvae.codebook", "behavior.1.weight", "q.1.weight"):
        assert not torch.equal(first["modules"][name], second["modules"][name])
    assert not torch.equal(first["generator"], second["generator"])
    assert np.load(tmp_path / "eval.npz")["seeds"][-3:].tolist() == [20_000, 20_001, 20_002]


def test_all_algorithms_train_the_same_vqvae_and_can_share_it(finished, tmp_path, capsys):
    run("saq_iql", tmp_path, vqvae_path=str(finished / "saq_bc" / "vqvae.pt"))
    assert "vqvae 40/40" not in capsys.readouterr().out
    expected = torch.load(finished / "saq_bc" / "vqvae.pt", weights_only=True)["weights"]
    for folder in (*(finished / algorithm for algorithm in ALGORITHMS), tmp_path):
        weights = torch.load(folder / "vqvae.pt", weights_only=True)["weights"]
        assert all(torch.equal(value, weights[key]) for key, value in expected.items())


RL = {"value_scale": 0.0, "gamma": 0.99, "n_step": 1}
PAPER = {
    "saq_bc": {},
    "saq_iql": {**RL, "tau": 0.005, "min_log_pi_b": -8.0},
    "saq_cql": {**RL, "backup": "greedy", "target_period": 200, "bc_steps": 0, "action_mode": "greedy"},
    "saq_brac": {**RL, "tau": 0.005},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_papers_recipe_runs(tmp_path, algorithm):
    common = {
        "learning_rate": 3e-4,
        "standardize": False,
        "layer_norm": False,
        "soft_codes": False,
        "dead_code_reset_every": 0,
        "ema_decay": 0.0,
        "action_mode": "sampled",
    }
    result = run(algorithm, tmp_path, **{**common, **PAPER[algorithm]})
    assert len(result["normalized_scores"]) == 3


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_steps_give_the_same_numbers(finished, tmp_path):
    run("saq_iql", tmp_path, compile=True)
    first, second = (torch.load(f / "model.pt", weights_only=True) for f in (finished / "saq_iql", tmp_path))
    for module in MODULES["saq_iql"]:
        for key, value in first[module].items():
            torch.testing.assert_close(value, second[module][key], atol=1e-3, rtol=1e-2)


def test_a_machine_that_cannot_compile_is_one_line_before_training(tmp_path):
    words = [*command("saq_bc", tmp_path / "run"), "--compile"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": "no-such-compiler"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --compile: PyTorch cannot compile here (Debian, Ubuntu: apt-get install g++")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """Shells leave it as it is in --flag=~/folder and in quoted variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "demo" / "fetch-pick-and-place-demo-v0.hdf5", tmp_path / "data" / "demo.hdf5")
    run("saq_bc", "~/runs/a", dataset_path="~/data/demo.hdf5")
    run("saq_bc", "~/runs/b", dataset_path="~/data/demo.hdf5", vqvae_path="~/runs/a/vqvae.pt")
    assert (tmp_path / "runs" / "b" / "result.json").exists() and not (tmp_path / "~").exists()


def test_damaged_metadata_of_a_package_do_not_end_a_run(monkeypatch, tmp_path):
    """What an upgrade that was interrupted leaves behind."""
    (tmp_path / "torch-9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.dist-info" / "METADATA").write_bytes(b"Name: torch\nAuthor: M\xfcller\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run("saq_bc", tmp_path / "run")
    versions = json.loads((tmp_path / "run" / "args.json").read_text())["versions"]
    assert "torch" not in versions and "numpy" in versions


def test_subnormal_numbers_are_flushed_to_zero(tmp_path):
    """Adam's moments of dead units become subnormal, which makes a CPU slow."""
    torch.set_flush_denormal(False)
    run("saq_bc", tmp_path)
    assert (torch.tensor([1e-38]) * 0.1).item() == 0.0


# ---- The same command continues --------------------------------------------------------------------------------------

LONGER = {
    "vqvae_steps": 400,
    "bc_steps": 1000,
    "rl_steps": 1000,
    "checkpoint_every": 300,
    "dead_code_reset_every": 150,
    "eval_every": 600,
    "final_eval_episodes": 2,
}


@pytest.mark.parametrize(
    "algorithm, phase", [("saq_cql", "vqvae"), ("saq_bc", "bc"), ("saq_iql", "rl"), ("saq_brac", "bc")]
)
def test_a_killed_run_continues_to_the_same_bits_and_curves(tmp_path, algorithm, phase):
    changes = {**LONGER, "vqvae_steps": 1000 if phase == "vqvae" else 400}
    run(algorithm, tmp_path / "whole", **changes)
    process = subprocess.Popen(command(algorithm, tmp_path / "killed", **changes), stdout=subprocess.PIPE, text=True)
    assert any(line.startswith(f"{phase} 500/") for line in process.stdout), "it ended before it could be killed"
    time.sleep(0.05)  # some more steps, which the next checkpoint would have
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    checkpoint = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert 300 <= checkpoint["steps_done"][phase] < 1000
    run(algorithm, tmp_path / "killed", **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_ctrl_c_saves_and_prints_the_command_that_continues(tmp_path):
    changes = {**LONGER, "checkpoint_every": 10_000}
    run("saq_bc", tmp_path / "whole", **changes)
    words = command("saq_bc", "my runs/a", **changes)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=tmp_path, **pipes)
    while not process.stdout.readline().startswith("bc 500/"):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130 and "Traceback" not in error
    checkpoint = torch.load(tmp_path / "my runs" / "a" / "checkpoint.pt", weights_only=True)
    assert 500 <= checkpoint["steps_done"]["bc"] < 1000
    _, _, again = error.strip().partition("interrupted; to continue: python ")
    subprocess.run([sys.executable, *shlex.split(again)], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert_same_run(tmp_path / "whole", tmp_path / "my runs" / "a")


def test_a_finished_run_trains_on_when_its_steps_grow(finished, finished_cql, tmp_path):
    run("saq_cql", finished_cql, rl_steps=80)
    run("saq_cql", tmp_path / "whole", rl_steps=80)
    first, second = (torch.load(f / "model.pt", weights_only=True) for f in (finished_cql, tmp_path / "whole"))
    assert all(torch.equal(value, second["q"][key]) for key, value in first["q"].items())
    assert json.loads((finished_cql / "result.json").read_text())["total_steps"] == 80
    assert np.load(finished_cql / "eval.npz")["step"].tolist() == [20, 20, 40, 40, 60, 60, 60, 80, 80, 80]


def test_a_finished_run_can_be_evaluated_again_and_no_point_comes_twice(finished, finished_cql):
    run("saq_cql", finished_cql)
    assert_same_run(finished / "saq_cql", finished_cql)
    result = run("saq_cql", finished_cql, action_mode="greedy", final_eval_episodes=4)
    assert result["action_mode"] == "greedy" and len(result["normalized_scores"]) == 4
    assert np.load(finished_cql / "eval.npz")["step"].tolist() == [20, 20, 40, 40, 60, 60, 60, 60]
    assert [step for step, _ in curves(finished_cql)["eval/normalized_score"]] == [20, 40, 60]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_dim": 32}, ["hidden_dim 16 (now 32)"]),
        ({"learning_rate": 1e-4, "alpha": 1.0}, ["learning_rate 0.003 (now 0.0001)", "alpha 4.0 (now 1.0)"]),
        ({"bc_steps": 40}, ["bc_steps 30 (now 40)"]),
        ({"rl_steps": 50}, ["rl_steps, of which 60 are done"]),
    ],
)
def test_a_run_does_not_continue_with_flags_that_change_what_it_learned(capsys, finished_cql, changes, words):
    before = (finished_cql / "checkpoint.pt").read_bytes()
    error = fails_with_one_line(capsys, run, "saq_cql", finished_cql, **changes)
    assert all(word in error for word in [*words, str(finished_cql), "--run-dir"]), error
    assert (finished_cql / "checkpoint.pt").read_bytes() == before
    assert json.loads((finished_cql / "args.json").read_text())["args"]["hidden_dim"] == 16


def test_a_run_does_not_continue_on_other_data(capsys, finished_cql, tmp_path):
    other = shutil.copy(ROOT / "demo" / "fetch-pick-and-place-demo-v0.hdf5", tmp_path / "other.hdf5")
    run("saq_cql", finished_cql, dataset_path=str(other))  # the same data in another place
    with h5py.File(other, "r+") as file:
        file["rewards"][0] = 0.5
    error = fails_with_one_line(capsys, run, "saq_cql", finished_cql, dataset_path=str(other))
    assert "dataset_checksum" in error


def test_two_processes_do_not_write_to_one_folder(capsys, finished_cql):
    with FileLock(finished_cql / "lock"):
        error = fails_with_one_line(capsys, run, "saq_cql", finished_cql)
    assert f"{finished_cql}: another process is running there" in error
    run("saq_cql", finished_cql)


def test_a_damaged_checkpoint_is_one_line(capsys, finished_cql):
    checkpoint = finished_cql / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "checkpoint.pt is damaged" in fails_with_one_line(capsys, run, "saq_cql", finished_cql)


def test_weights_are_saved_before_the_last_evaluation_can_fail(tmp_path, monkeypatch):
    import tasks

    def evaluate(self, policy, episodes, seed, video):
        raise ConnectionResetError

    monkeypatch.setattr(tasks.Task, "evaluate", evaluate)
    with pytest.raises(ConnectionResetError):
        run("saq_bc", tmp_path, eval_every=100)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["algorithm"] == "saq_bc"
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["steps_done"]["bc"] == 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_on_a_gpu_continues_to_the_same_bits(tmp_path, algorithm):
    run("saq_bc", tmp_path / "codes")
    codes = str(tmp_path / "codes" / "vqvae.pt")  # k-means on a GPU adds in any order
    changes = {"vqvae_path": codes, "device": "cuda"}
    run(algorithm, tmp_path / "whole", **changes)
    run(algorithm, tmp_path / "part", **changes, rl_steps=30)
    run(algorithm, tmp_path / "part", **changes, rl_steps=60)
    first, second = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "part"))
    for module in MODULES[algorithm]:
        torch.testing.assert_close(first[module], second[module], rtol=0.0, atol=0.0)


# ---- Bad input and bad machines --------------------------------------------------------------------------------------


def write_d4rl(path, observations, actions):
    """A file in D4RL's layout with a trajectory every 50 rows."""
    rows = np.arange(len(actions))
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = observations, actions
        file["rewards"], file["terminals"] = np.ones(len(rows)), np.zeros(len(rows))
        file["timeouts"] = rows % 50 == 49
    return str(path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"env_id": "hoper-medium-v2"}, ["hoper-medium-v2", "hopper-medium-v2"]),
        ({"env_id": "hopper-medium-v2"}, ["cannot download", "hopper_medium-v2.hdf5"]),
        ({"dataset_path": "nowhere.hdf5"}, ["nowhere.hdf5"]),
        ({"env_id": "none"}, ["--dataset-path"]),
        ({"vqvae_path": "nowhere.pt"}, ["--vqvae-path", "nowhere.pt"]),
        ({"vqvae_path": "{finished}/model.pt"}, ["--vqvae-path", "model.pt is not a readable vqvae.pt"]),
        ({"vqvae_path": "{finished}/vqvae.pt", "codebook_size": 16}, ["'codebook_size': 8", "'codebook_size': 16"]),
        ({"vqvae_path": "{finished}/vqvae.pt", "standardize": False}, ["vqvae.pt", "--standardize"]),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, finished, tmp_path, changes, words):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # refuses: a machine without network
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    changes = {name: value.format(finished=finished / "saq_cql") if name == "vqvae_path" else value
               for name, value in changes.items()}  # fmt: skip
    error = fails_with_one_line(capsys, run, "saq_cql", tmp_path / "run", **changes)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--gamma=2", "gamma must be between 0 and 1"),
        ("--rl-steps=0", "rl_steps must be between"),
        ("--alpha=-1", "alpha must be between"),
        ("--learning-rate=inf", "learning_rate must be between"),
        ("--alhpa=1", "--alhpa"),
    ],
)
def test_flags_out_of_range_are_refused(flag, words):
    done = subprocess.run([sys.executable, ROOT / "saq_cql.py", flag], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(capsys, tmp_path):
    assert "--device cpu" in fails_with_one_line(capsys, run, "saq_bc", tmp_path, device="cuda")


def test_a_folder_that_cannot_be_made_is_one_line(capsys, tmp_path):
    (tmp_path / "file").touch()
    error = fails_with_one_line(capsys, run, "saq_bc", tmp_path / "file" / "run")
    assert f"--run-dir {tmp_path / 'file' / 'run'}" in error


def test_a_run_that_diverges_is_one_line(capsys, tmp_path):
    error = fails_with_one_line(capsys, run, "saq_bc", tmp_path, layer_norm=False, learning_rate=1e9)
    assert "vqvae has diverged by step 40" in error and "--learning-rate" in error


def test_a_graphics_library_that_is_missing_is_one_line(tmp_path):
    words, environment = command("saq_bc", tmp_path / "run"), {**os.environ, "MUJOCO_GL": "bogus"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "MUJOCO_GL" in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("algorithm", ["saq_bc", "saq_iql"])
def test_data_without_an_environment(capsys, tmp_path, algorithm):
    """Such as a real robot's: the score is the share of the variance of held-out actions that the policy explains."""
    observations = np.random.default_rng(0).normal(size=(2000, 5))
    actions = np.stack([observations[:, 0] > 0, 1000 + 300 * np.sin(observations[:, 1])], 1)
    actions[0, 1], actions[1, 1] = 700, 1300
    data = write_d4rl(tmp_path / "robot.hdf5", observations, actions)
    settings = {"vqvae_steps": 300, "rl_steps": 300, "hidden_dim": 32, "codebook_size": 64, "eval_every": 10_000}
    result = run(algorithm, tmp_path / "run", env_id="none", dataset_path=data, final_eval_episodes=100, **settings)
    assert len(result["normalized_scores"]) == 4  # of 40 trajectories
    assert max(result["normalized_scores"]) < 100
    assert "squared error of held-out actions" in capsys.readouterr().out
    model = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    np.testing.assert_allclose([model["action_low"], model["action_high"]], [[0, 700], [1, 1300]], rtol=1e-5)
    if algorithm == "saq_bc":
        assert result["normalized_score"] > 50


@pytest.mark.parametrize("algorithm", ["saq_cql", "saq_brac"])  # which keep log pi_b of every transition and code
def test_a_million_transitions_fit_in_twice_their_size_plus_1_and_a_half_gb(tmp_path, algorithm):
    rng, count = np.random.default_rng(0), 1_000_000
    path = tmp_path / "million.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = rng.standard_normal((count, 11), np.float32)
        file["actions"] = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
        file["rewards"] = rng.standard_normal(count, np.float32)
        file["terminals"] = np.zeros(count, bool)
        file["timeouts"] = np.arange(count) % 1000 == 999
    settings = {"env_id": "hopper-medium-v2", "dataset_path": str(path), "hidden_dim": 64, "codebook_size": 64}
    measured = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    words = [sys.executable, "-c", measured, *command(algorithm, tmp_path / "run", **settings)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.splitlines()[-1])
    assert kilobytes * 1024 < 2 * path.stat().st_size + 1.5 * 2**30
