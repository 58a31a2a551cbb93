"""What goes wrong elsewhere is one line: a full disk, no home, Ctrl-C, two processes, damaged files, wild numbers."""

import copy
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from filelock import FileLock
from test_script import SMALL, command, longer, only_run, run
from torch.utils.tensorboard import SummaryWriter

import saq_cql


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(*SMALL, folder=folder)
    return only_run(folder / "runs")


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def write_d4rl(path, observations, actions):
    """A file of D4RL's layout with a trajectory every 50 rows."""
    rows = np.arange(len(actions))
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = observations, actions
        file["rewards"], file["terminals"], file["timeouts"] = np.ones(len(rows)), np.zeros(len(rows)), rows % 50 == 49
    return path


def one_line(done, *words):
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(str(word) in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("script", ["saq_cql", "benchmark/baselines/bc", "benchmark/quantizers"])
@pytest.mark.parametrize("seconds", [0.3, 1.5])  # amid the slow imports, and about when they are done
def test_ctrl_c_in_the_first_seconds_ends_without_a_word(tmp_path, script, seconds):
    words = [sys.executable, ROOT / f"{script}.py", *["uniform", "bc"] * script.endswith("quantizers")]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGINT or "interrupted; to continue" in error  # a fast machine
    assert "Traceback" not in error and "Exception" not in error


def test_ctrl_c_says_how_to_continue(tmp_path):
    flags = [*longer("saq_cql", 2000), "--runs-dir=my runs"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*flags), cwd=tmp_path, **pipes)
    while not process.stdout.readline().startswith("vqvae"):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 1
    assert error.startswith("interrupted; to continue: python ") and "Traceback" not in error
    words = shlex.split(error.removeprefix("interrupted; to continue: "))  # a folder with a space in it is quoted
    assert words[2:] == ["--resume", str(only_run(tmp_path / "my runs").relative_to(tmp_path))]


def test_ctrl_c_amid_an_evaluation_loses_no_steps(checkpointed):
    """That of an earlier step goes on, since its steps are saved behind it. Its time is not that of training."""

    def evaluate(act, *_):
        time.sleep(0.1)
        return dict.fromkeys(("scores", "returns", "lengths", "seeds"), act(np.full((1, 3), 7.0))[:, 0])

    checkpointed.args, checkpointed.task = SimpleNamespace(seed=1, total_steps=10), SimpleNamespace(evaluate=evaluate)
    checkpointed.interrupted, checkpointed.since = "interrupted", 0.0
    assert checkpointed.evaluate(lambda seen, *_: seen, "mean", 1, step=5) == [7.0]
    assert 0.1 <= checkpointed.since < 10
    for step in (10, None):
        with pytest.raises(SystemExit, match="interrupted"):
            checkpointed.evaluate(lambda seen, *_: seen, "mean", 1, step)


def test_a_run_that_diverges_is_one_line(tmp_path):
    flags = [*SMALL, "--no-layer-norm", "--learning-rate=1e9"]
    one_line(run(*flags, folder=tmp_path, code=2), "vqvae has diverged by step 40", "nan", "--learning-rate")


def test_two_processes_do_not_write_to_one_run(folder, finished):
    with FileLock(folder / "lock"):
        one_line(run("--resume", folder, "--total-steps=80", code=2), folder / "lock")
    assert (folder / "checkpoint.pt").read_bytes() == (finished / "checkpoint.pt").read_bytes()
    run("--resume", folder, "--total-steps=80")


def test_another_dataset_is_not_resumed_on(folder, finished, tmp_path):
    other = write_d4rl(tmp_path / "other.hdf5", np.zeros((2000, 28)), np.zeros((2000, 4)))
    one_line(run("--resume", folder, f"--dataset-path={other}", code=2), "another dataset")
    assert (folder / "checkpoint.pt").read_bytes() == (finished / "checkpoint.pt").read_bytes()


@pytest.fixture
def checkpointed(tmp_path):
    """A `Run` of one small network with its checkpoint written."""
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    adam.step()
    run = saq_cql.Run.__new__(saq_cql.Run)
    run.folder, run.args, run.start, run.curves = tmp_path, SimpleNamespace(dataset={"actions": 7}), 0.0, []
    run.networks, run.optimizers, run.generator = torch.nn.ModuleDict({"q": net}), [adam], torch.Generator()
    run.steps_done, run.episodes, run.writer = {"rl": 5}, {"step": [5]}, SummaryWriter(tmp_path)
    run.save()
    return run


def test_weights_are_written_before_an_evaluation_can_fail(checkpointed):
    def evaluate(*_):
        raise ConnectionResetError

    flags = {"acting": "mean", "final_eval_episodes": 1, "capture_video": False}
    checkpointed.args, checkpointed.flags = SimpleNamespace(seed=1, total_steps=5, **flags), flags
    checkpointed.task = SimpleNamespace(evaluate=evaluate)
    with pytest.raises(ConnectionResetError):
        checkpointed.finish(None, ["mean"], {"q": checkpointed.networks["q"]}, {})
    model = torch.load(checkpointed.folder / "model.pt", weights_only=True)
    torch.testing.assert_close(model["q"], checkpointed.networks["q"].state_dict())


def test_a_checkpoint_is_loaded_as_it_was_saved(checkpointed):
    before = copy.deepcopy(checkpointed.networks.state_dict())
    checkpointed.steps_done, checkpointed.episodes, checkpointed.start = {}, {}, 0.0
    torch.nn.init.zeros_(checkpointed.networks["q"].weight)
    checkpointed.load()
    torch.testing.assert_close(checkpointed.networks.state_dict(), before)
    assert (checkpointed.steps_done, checkpointed.episodes) == ({"rl": 5}, {"step": [5]})
    assert checkpointed.start < 0.0  # by the seconds of before


@pytest.mark.parametrize(
    "mutate",
    [
        lambda checkpoint: checkpoint["optimizers"][0][0].update(exp_avg=torch.zeros(3, 3)),
        lambda checkpoint: checkpoint["optimizers"][0][0].update(exp_avg="none"),
        lambda checkpoint: checkpoint.update(optimizers=[]),
        lambda checkpoint: checkpoint.update(steps_done={"rl": "many"}),
        lambda checkpoint: checkpoint.update(steps_done=None),
        lambda checkpoint: checkpoint.update(episodes={"step": 7}),
        lambda checkpoint: checkpoint.update(seconds="long"),
        lambda checkpoint: checkpoint.update(generator=None),
        lambda checkpoint: checkpoint.update(dataset={"actions": 8}),
        lambda checkpoint: checkpoint.pop("networks"),
        lambda checkpoint: checkpoint["networks"].update({"q.weight": torch.zeros(3)}),
    ],
)
def test_a_checkpoint_with_other_things_in_it_is_refused(checkpointed, capsys, mutate):
    checkpoint = torch.load(checkpointed.folder / "checkpoint.pt", weights_only=True)
    mutate(checkpoint)
    torch.save(checkpoint, checkpointed.folder / "checkpoint.pt")
    with pytest.raises(SystemExit, match="2"):
        checkpointed.load()
    error = capsys.readouterr().err
    assert "checkpoint.pt is damaged or of other networks" in error and error.count("\n") == 1


def test_a_flipped_byte_in_a_checkpoint_is_found(folder):
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["networks"]["q.1.weight"]
    content[content.index(weights.numpy().tobytes())] ^= 1
    (folder / "checkpoint.pt").write_bytes(content)
    one_line(run("--resume", folder, "--total-steps=80", code=2), "checkpoint.pt is damaged")


@pytest.mark.parametrize("flag", ["codebook-size=10000", "ema-decay=1.5", "restart-every=-1", "learning-rate=-1"])
def test_numbers_out_of_range_are_refused(monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["saq_cql.py", f"--{flag}"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit, match="2"):
        saq_cql.parse_args(saq_cql.Method)
    assert f"--{flag.partition('=')[0]} must be between" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[", "null", "{}", '{"command": 3}', '{"command": []}', '{"command": [1]}', "\xff"]
)
def test_an_args_json_with_other_things_in_it_is_refused(monkeypatch, capsys, tmp_path, text):
    (tmp_path / "args.json").write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(sys, "argv", ["saq_cql.py", "--resume", str(tmp_path)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit, match="2"):
        saq_cql.parse_args(saq_cql.Method)
    error = capsys.readouterr().err
    assert error.startswith("error: --resume") and error.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(folder, finished):
    """A limit on the size of files stands for the disk."""
    limit = (folder / "checkpoint.pt").stat().st_size - 1000
    words, pipes = command("--resume", folder, "--total-steps=80"), {"capture_output": True, "text": True}
    done = subprocess.run(words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), **pipes)
    assert done.returncode == 2
    one_line(done, "cannot write", "checkpoint.pt")
    assert (folder / "checkpoint.pt").read_bytes() == (finished / "checkpoint.pt").read_bytes()
    assert not list(folder.glob("part-*"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    one_line(run(*SMALL, f"--runs-dir={tmp_path / 'file'}", code=2), "Not a directory", tmp_path / "file")


def test_without_a_home_folder_the_demo_runs(tmp_path):
    nobody = "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"
    (tmp_path / "sitecustomize.py").write_text(nobody)
    environment = {key: value for key, value in os.environ.items() if key != "HOME"} | {"PYTHONPATH": str(tmp_path)}
    words = command(*SMALL, "--runs-dir", tmp_path / "runs")
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [[], ["--capture-video"]])
def test_a_graphics_library_that_is_not_here_is_one_line(tmp_path, flags):
    one_line(run(*SMALL, *flags, folder=tmp_path, env={"MUJOCO_GL": "bogus"}, code=2), "MUJOCO_GL")


@pytest.mark.parametrize("algorithm", ["saq_bc", "saq_iql", "saq_cql", "benchmark/baselines/bc"])
def test_data_without_an_environment(tmp_path, algorithm):
    """Such as a real robot's: what is reported is of trajectories that no step has seen, in the data's own units."""
    observations = np.random.default_rng(0).normal(size=(2000, 5))
    actions = np.stack([observations[:, 0] > 0, 1000 + 300 * np.sin(observations[:, 1])], 1)
    actions[0, 1], actions[1, 1] = 700, 1300
    path = write_d4rl(tmp_path / "robot.hdf5", observations, actions)
    flags = ["--env-id=none", f"--dataset-path={path}", "--total-steps=300", "--final-eval-episodes=100"]
    flags += ["--hidden-dim=32"] + ["--vqvae-steps=300"] * (not algorithm.startswith("benchmark"))
    done = run(*flags, folder=tmp_path, algorithm=algorithm)
    result = json.loads((only_run(tmp_path / "runs") / "result.json").read_text())
    assert len(result["normalized_scores"]) == 4 and max(result["normalized_scores"]) < 100  # of 40 trajectories
    assert "squared error of held-out actions" in done.stdout
    assert len({tuple(scores) for scores in result["scores"].values()}) == len(result["scores"])  # a way of acting each
    args = torch.load(only_run(tmp_path / "runs") / "model.pt", weights_only=True)["args"]
    np.testing.assert_allclose([args["action_low"], args["action_high"]], [[0, 700], [1, 1300]], rtol=1e-5)
    if algorithm == "saq_bc":
        assert result["normalized_score"] > 50
        assert 0 < result["held_out"]["cross_entropy"] < np.log(64)


def test_what_data_without_an_environment_lack_is_one_line(tmp_path):
    one_line(run("--env-id=none", folder=tmp_path, code=2), "--dataset-path")
    path = write_d4rl(tmp_path / "robot.hdf5", np.zeros((100, 5)), np.zeros((100, 2)))
    one_line(run("--env-id=none", f"--dataset-path={path}", "--capture-video", code=2), "no environment")
