"""held_out.py: a run's errors on its own dataset and on another file."""

import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmark"))
import held_out

import tasks
from saq_cql import Args, mlp
from vqvae import VQVAE

DEMO = ROOT / "demo" / "fetch-pick-and-place-demo-v0.hdf5"


def write_run(folder, seed, **arguments):
    torch.manual_seed(seed)
    args = Args(codebook_size=7, hidden_dim=8, **arguments)
    vqvae = VQVAE(28, 4, codebook_size=7, hidden_dim=8)
    behavior = mlp(vqvae.standardize, 7, args)
    folder.mkdir()
    vqvae.save(folder / "vqvae.pt")
    torch.save({"args": vars(args), "behavior": behavior.state_dict()}, folder / "model.pt")
    return vqvae, behavior


def by_hand(vqvae, behavior, path):
    with h5py.File(path) as file, torch.no_grad():
        observations = torch.from_numpy(file["observations"][()])
        actions = torch.from_numpy(np.clip(file["actions"][()], -0.999, 0.999))
        codes = vqvae.encode(observations, actions)
        error = ((vqvae.decode(observations, codes) - actions).numpy() ** 2).sum(1).mean()
        exponentials = np.exp(behavior(observations).numpy().astype(np.float64))
    probabilities = exponentials[np.arange(len(codes)), codes.numpy()] / exponentials.sum(1)
    return error, -np.log(probabilities).mean()


def test_errors_on_both_datasets_are_the_ones_by_hand(tmp_path, capsys):
    other = tmp_path / "other.hdf5"
    with h5py.File(DEMO) as source, h5py.File(other, "w") as target:
        for key in source:
            target[key] = source[key][:900]
    runs = (tmp_path / "one", tmp_path / "two")
    models = [write_run(run, seed) for seed, run in enumerate(runs)]
    held_out.main(held_out.Args(runs, str(other)))
    for run, model, line in zip(runs, models, capsys.readouterr().out.splitlines()[-2:], strict=True):
        *figures, name = line.split()
        (error, entropy), (held_error, held_entropy) = by_hand(*model, DEMO), by_hand(*model, other)
        assert name == str(run)
        wanted = [error, held_error, entropy, held_entropy]
        assert [float(figure) for figure in figures] == pytest.approx(wanted, abs=0.0051)


def test_without_an_environment_the_other_episodes_are_those_held_out(tmp_path, capsys):
    vqvae, _ = write_run(tmp_path / "run", 0, env_id="none", dataset_path=str(DEMO))
    held_out.main(held_out.Args((tmp_path / "run",)))
    line = capsys.readouterr().out.splitlines()[-1]
    task = tasks.make("none", DEMO)
    task.dataset()
    observations, actions = map(torch.from_numpy, task.held_out)
    assert 0 < len(actions) < 3000
    codes = vqvae.encode(observations, actions)
    error = (vqvae.decode(observations, codes) - actions).square().sum(1).mean().item()
    assert float(line.split()[1]) == pytest.approx(error, abs=0.0051)


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "run", 0)
    for runs, path, message in [
        ((tmp_path,), str(DEMO), "not the folder of a finished run"),
        ((), str(DEMO), "at least one folder"),
        ((tmp_path / "run",), None, "--dataset-path"),
        ((tmp_path / "run",), "missing.hdf5", "missing.hdf5"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            held_out.main(held_out.Args(runs, path))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1
