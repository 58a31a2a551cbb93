"""held_out.py: a run's errors on its own dataset and on another file."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT

from saq_cql import Data, Method, mlp
from vqvae import VQVAE

DEMO = ROOT / "demo" / "fetch-pick-and-place-demo-v0.hdf5"


def write_run(folder, seed):
    torch.manual_seed(seed)
    vqvae = VQVAE(28, 4, codebook_size=7, hidden_dim=8)
    net = mlp(vqvae.standardize, 7, 8, layer_norm=True)
    folder.mkdir()
    vqvae.save(folder / "vqvae.pt")
    args = Data()._asdict() | Method(codebook_size=7, hidden_dim=8)._asdict()
    torch.save({"args": args, "behavior": net.state_dict()}, folder / "model.pt")
    return vqvae, net


def by_hand(vqvae, net, path):
    with h5py.File(path) as file, torch.no_grad():
        observations = torch.from_numpy(file["observations"][()])
        actions = torch.from_numpy(np.clip(file["actions"][()], -0.999, 0.999))
        codes = vqvae.encode(observations, actions)
        error = ((vqvae.decode(observations, codes) - actions).numpy() ** 2).sum(1).mean()
        exponentials = np.exp(net(observations).numpy().astype(np.float64))
    probabilities = exponentials[np.arange(len(codes)), codes.numpy()] / exponentials.sum(1)
    return error, -np.log(probabilities).mean()


def held_out(*flags):
    command = [sys.executable, str(ROOT / "benchmark" / "held_out.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_errors_on_both_datasets_are_those_by_hand(tmp_path):
    other = tmp_path / "other.hdf5"
    with h5py.File(DEMO) as source, h5py.File(other, "w") as target:
        for key in source:
            target[key] = source[key][:900]
    runs = [tmp_path / "one", tmp_path / "two"]
    models = [write_run(run, seed) for seed, run in enumerate(runs)]
    done = held_out(*runs, "--dataset-path", other)
    assert done.returncode == 0, done.stderr
    for run, (vqvae, net), line in zip(runs, models, done.stdout.splitlines()[-2:], strict=True):
        *figures, name = line.split()
        assert name == str(run)
        (error, entropy), (held_error, held_entropy) = by_hand(vqvae, net, DEMO), by_hand(vqvae, net, other)
        wanted = [error, held_error, entropy, held_entropy]
        assert [float(figure) for figure in figures] == pytest.approx(wanted, abs=0.0051)


def test_what_is_no_run_is_said_in_one_line(tmp_path):
    write_run(tmp_path / "own", 0)  # of data without an environment, whose units are the file's own
    model = torch.load(tmp_path / "own" / "model.pt", weights_only=True)
    model["args"]["env_id"] = "none"
    torch.save(model, tmp_path / "own" / "model.pt")
    for runs, message in [
        ((tmp_path,), "not the folder of a finished run"),
        ((), "at least one folder"),
        ((tmp_path / "own",), "its result.json has these errors"),
    ]:
        done = held_out(*runs, "--dataset-path", DEMO)
        assert done.returncode == 2 and message in done.stderr
        assert len(done.stderr.splitlines()) == 1
