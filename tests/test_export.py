"""examples/export.py on short runs of the four algorithms, and on a file whose action bounds are not symmetric."""

import importlib.util
import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from conftest import ALGORITHMS, ROOT
from test_tasks_no_env import write

from examples import act, export

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def train(algorithm, folder, **flags):
    module = import_module(algorithm)
    steps = {"vqvae_steps": 30, "bc_steps": 30}
    if algorithm != "saq_bc":
        steps["rl_steps"] = 30
    small = {"codebook_size": 8, "hidden_dim": 16, "final_eval_episodes": 1, "device": "cpu"}
    module.main(module.Args(run_dir=str(folder), **{**small, **steps, **flags}))
    return folder


@pytest.fixture(scope="module", params=ALGORITHMS)
def run(request, tmp_path_factory):
    return train(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def robot_run(tmp_path_factory):
    """A run on data without an environment. The bounds of the first action are moved to [90, 110]."""
    import h5py

    folder = tmp_path_factory.mktemp("robot")
    path, _ = write(folder / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        file["actions"][:, 0] += 100.0
    return train("saq_bc", folder / "run", env_id="none", dataset_path=str(path))


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def stops(capsys, *arguments, **flags) -> str:
    """The one line with which export.py stops."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        export.main(export.Args(list(arguments), **flags))
    assert stopped.value.code == 2
    return one_line(capsys)


def environment_units(actions, model):
    """Actions (B, action_dim) in [-1, 1], clipped and scaled to the bounds of a run."""
    low, high = np.array(model["action_low"]), np.array(model["action_high"])
    return low + (high - low) * (np.clip(actions.numpy(), -1, 1) + 1) / 2


@pytest.mark.parametrize("action_mode", ["mean", "greedy"])
def test_the_file_acts_as_the_policy_in_batches_of_any_size(run, action_mode, tmp_path, capsys):
    capsys.readouterr()
    export.main(export.Args([run, tmp_path / "policy.onnx"], action_mode))
    assert "1000 random and 1000 dataset observations" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]
    assert str(ROOT).encode() not in (tmp_path / "policy.onnx").read_bytes()

    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    policy, model = act.load_policy(run)
    standardize = policy.vqvae.standardize
    for batch_size in (1, 7):
        observations = standardize.mean + torch.randn(batch_size, 28) * standardize.std
        (actions,) = session.run(["action"], {"observation": observations.numpy()})
        assert actions.dtype == np.float32
        expected = environment_units(policy(observations, action_mode), model)
        np.testing.assert_allclose(actions, expected, atol=2e-5, rtol=0)  # 1e-5 of the range, which is 2
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["algorithm"] == model["algorithm"] and metadata["action_mode"] == action_mode
    assert metadata["env_id"] == "fetch-pick-and-place-demo-v0" and json.loads(metadata["action_low"]) == [-1.0] * 4


def test_the_command_prints_one_line(robot_run, tmp_path):
    """And hides the exporter's warnings, which only appear in a process without pytest."""
    command = [sys.executable, ROOT / "examples" / "export.py", robot_run, tmp_path / "policy.onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert len(done.stdout.splitlines()) == 1 and "greedy actions of saq_bc" in done.stdout


def test_actions_are_in_the_robots_units_and_within_its_bounds(robot_run, tmp_path, capsys):
    export.main(export.Args([robot_run, tmp_path / "policy.onnx"], "mean"))
    assert "1000 random and 360 dataset observations" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    policy, model = act.load_policy(robot_run)
    observations = torch.randn(50, 3)
    (actions,) = session.run(None, {"observation": observations.numpy()})
    low, high = np.array(model["action_low"]), np.array(model["action_high"])
    assert 89 < low[0] < 91 and 109 < high[0] < 111 and -1.01 < low[1] < -0.9
    expected = environment_units(policy(observations, "mean"), model)
    assert (np.abs(actions - expected) / (high - low)).max() < 1e-5

    policy.vqvae.decoder[-1].bias.data[:] = torch.tensor([2.0, -2.0])  # beyond the bounds
    exported = export.ExportedPolicy(policy, "mean", torch.tensor(low).float(), torch.tensor(high).float())
    session = onnxruntime.InferenceSession(export.export(exported))
    (actions,) = session.run(None, {"observation": observations.numpy()})
    np.testing.assert_array_equal(actions, np.tile(np.float32([high[0], low[1]]), (50, 1)))


def test_a_constant_observation_and_a_missing_dataset(tmp_path, capsys):
    import h5py

    path, _ = write(tmp_path / "data.hdf5", 20)
    with h5py.File(path, "r+") as file:
        for name in ("observations", "next_observations"):
            file[name][:, 2] = 5.0
    train("saq_bc", tmp_path / "run", env_id="none", dataset_path=str(path))
    path.unlink()
    capsys.readouterr()
    export.main(export.Args([tmp_path / "run", tmp_path / "policy.onnx"]))
    assert capsys.readouterr().out.endswith("on 1000 random observations\n")


def test_sampled_is_refused(robot_run, tmp_path, capsys):
    data = str(robot_run.parent / "data.hdf5")
    train("saq_bc", tmp_path / "run", env_id="none", dataset_path=data, action_mode="sampled")
    assert "--action-mode mean or greedy" in stops(capsys, tmp_path / "run", tmp_path / "policy.onnx")
    assert not (tmp_path / "policy.onnx").exists()


@pytest.mark.parametrize("damage", ["a wrong action", "nan"])
def test_a_failed_export_leaves_the_file_as_it_was(robot_run, damage, tmp_path, capsys, monkeypatch):
    (tmp_path / "policy.onnx").write_bytes(b"earlier")
    original = export.export

    def damaged(exported):
        shift = torch.tensor([torch.nan if damage == "nan" else 4e-3, 0.0])  # 2e-4 of the range, which is 20
        other = export.ExportedPolicy(exported.policy, exported.action_mode, exported.low, exported.high)
        other.register_forward_hook(lambda module, inputs, actions: actions + shift)
        return original(other)

    monkeypatch.setattr(export, "export", damaged)
    assert "is not written" in stops(capsys, robot_run, tmp_path / "policy.onnx")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("policy.onnx", b"earlier")]


def test_two_runs_no_run_and_no_file_name_are_one_line(robot_run, tmp_path, capsys):
    onnx = tmp_path / "policy.onnx"
    assert "one run" in stops(capsys, robot_run, robot_run, onnx)
    assert "one run" in stops(capsys, onnx)
    assert "one run" in stops(capsys, tmp_path / "run*", onnx)
    assert "one run" in stops(capsys)
    assert "ends in .onnx" in stops(capsys, robot_run)
    assert "No such file" in stops(capsys, robot_run, tmp_path / "nowhere" / "policy.onnx")


def test_missing_packages_are_one_line(robot_run, tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    line = stops(capsys, robot_run, tmp_path / "policy.onnx")
    assert "onnxscript" in line and "pip install -r requirements-export.txt" in line


def test_a_tilde_is_the_home_folder(robot_run, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(robot_run.parent))
    export.main(export.Args([export.Path("~/run"), export.Path("~/policy.onnx")]))
    assert (robot_run.parent / "policy.onnx").exists()
