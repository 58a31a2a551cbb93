"""Quantizers in the VQ-VAE's place: Aquadem, action-only and uniform, alone and under the algorithm files."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmark"))
sys.path.insert(0, str(ROOT / "benchmark" / "baselines"))
from aquadem import Aquadem, train_aquadem
from quantizers import ActionOnly, Uniform, divide, fit_uniform, take_word

from vqvae import VQVAE, Standardize, train_vqvae

SMALL = {"codebook_size": 12, "hidden_dim": 32}


def batch(rows=300, observation_dim=5, action_dim=3):
    return torch.randn(rows, observation_dim), torch.rand(rows, action_dim) * 2 - 1


def aquadem(temperature=1e-3):
    """A model whose candidates are spread out, so that many are somewhere the nearest."""
    model = Aquadem(5, 3, **SMALL)
    model.standardize = Standardize(torch.ones(5), torch.full((5,), 2.0))
    torch.nn.init.normal_(model.network[-1].weight, std=0.3)
    model.temperature = temperature
    return model


def brute_force_errors(model, observations, actions):
    """|psi_k(s) - a|^2 (B, K) float64, each candidate through `decode`."""
    candidates = [model.decode(observations, torch.full((len(actions),), k)) for k in range(SMALL["codebook_size"])]
    return np.stack([((c.double() - actions.double()) ** 2).sum(1).numpy() for c in candidates], 1)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_aquadem_loss_is_the_soft_minimum(temperature):
    model, (observations, actions) = aquadem(temperature), batch()
    errors = brute_force_errors(model, observations, actions)
    expected = np.mean([-temperature * math.log(sum(math.exp(-e / temperature) for e in row)) for row in errors])
    metrics = model.loss(observations, actions)
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert metrics["reconstruction"].item() == pytest.approx(errors.min(1).mean(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-4])
def test_aquadem_loss_is_between_the_minimum_and_t_log_k_below_it(temperature):
    model, (observations, actions) = aquadem(temperature), batch()
    least = brute_force_errors(model, observations, actions).min(1).mean()
    loss = model.loss(observations, actions)["loss"].item()
    assert least - temperature * math.log(12) - 1e-4 <= loss <= least + 1e-4


def test_aquadem_gradient_at_low_temperature_is_that_of_the_nearest_candidate():
    model, (observations, actions) = aquadem(1e-6), batch()
    model.loss(observations, actions)["loss"].backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    nearest = model.candidates(observations)[torch.arange(len(actions)), model.encode(observations, actions)]
    (nearest - actions).square().sum(1).mean().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-3)


def test_aquadem_gradient_is_shared_by_the_softmax_of_the_errors():
    """dL/d psi_k = w_k 2 (psi_k - a), w = softmax(-errors / T): every candidate's errors weigh in."""
    model, (observations, actions) = aquadem(0.5), batch(1)
    candidates = model.candidates(observations).detach().requires_grad_()
    model.candidates = lambda _: candidates
    model.loss(observations, actions)["loss"].backward()
    errors = (candidates - actions[:, None]).detach()
    weights = torch.softmax(-errors.square().sum(2) / 0.5, 1)
    torch.testing.assert_close(candidates.grad, 2 * weights[:, :, None] * errors)


def test_aquadem_code_is_the_nearest_candidate():
    model, (observations, actions) = aquadem(), batch(5000)  # more than one chunk
    codes = model.encode(observations, actions)
    assert codes.dtype == torch.int64 and len(codes.unique()) > 4
    errors = brute_force_errors(model, observations, actions)
    np.testing.assert_allclose(errors[np.arange(5000), codes], errors.min(1), rtol=1e-5, atol=1e-6)
    decoded = model.decode(observations, codes)
    quality = model.evaluate(observations, actions)
    assert quality["reconstruction_error"] == pytest.approx((decoded - actions).square().sum(1).mean().item())
    assert quality["codes_used"] == len(codes.unique())


def test_aquadem_learns_modes_that_depend_on_the_state_whatever_restarts_are_asked_for():
    observations = torch.randn(4000, 5)
    sign = torch.randint(2, (4000, 1)) * 2.0 - 1.0
    actions = 0.5 * sign + 0.3 * torch.tanh(observations[:, :3])
    model = Aquadem(5, 3, codebook_size=4, hidden_dim=64)
    train_aquadem(model, observations, actions, 500, restart_every=100)
    quality = model.evaluate(observations, actions)
    assert quality["reconstruction_error"] < 0.05 * quality["action_variance"]


def test_action_only_does_not_see_observations():
    observations, actions = batch()
    model = ActionOnly.for_data(observations, actions, **SMALL)
    train_vqvae(model, observations, actions, 100, restart_every=50)
    codes, other = model.encode(observations, actions), 100.0 * torch.randn_like(observations)
    assert len(codes.unique()) > 6
    assert torch.equal(codes, model.encode(other, actions))
    assert torch.equal(model.decode(observations, codes), model.decode(other, codes))
    assert model.loss(observations, actions)["loss"] == model.loss(other, actions)["loss"]
    assert torch.equal(model.standardize.mean, observations.mean(0))  # the policies' own


def test_uniform_in_one_dimension_is_equal_bins():
    model = Uniform(5, 1, codebook_size=16)
    actions = torch.linspace(-1, 1, 1601)[:, None]
    model.fit(actions)
    torch.testing.assert_close(model.codebook[:, 0], -1 + (torch.arange(16) + 0.5) / 8)
    codes = model.encode(actions, actions)
    inside = actions[:, 0].mul(800).round().remainder(100) != 0  # rounding decides on the edges
    assert torch.equal(codes[inside], ((actions[:, 0] + 1) * 8).long()[inside])
    assert (codes[0], codes[-1]) == (0, 15)


def test_uniform_divides_where_it_helps_most():
    assert divide([4.0, 2.0, 1.0], 1) == [1, 1, 1]
    assert divide([4.0, 2.0, 1.0], 3) == [3, 1, 1]
    # first 16 (1 - 1/4) = 12, then 4 (1 - 1/4) = 3 against 16 (1/4 - 1/9) = 2.2
    assert divide([4.0, 2.0, 1.0], 4) == [2, 2, 1]
    assert divide([4.0, 2.0, 1.0], 6) == [3, 2, 1]
    assert divide([2.0, 0.0], 8) == [8, 1]  # what never changes needs one bin
    assert divide([0.0, 0.0], 8) == [1, 1]


@pytest.mark.parametrize("action_dim", [1, 2, 4, 28])
@pytest.mark.parametrize("codebook_size", [1, 8, 64, 100])
def test_uniform_is_the_nearest_centre_of_at_most_k_cells(action_dim, codebook_size):
    model = Uniform(5, action_dim, codebook_size=codebook_size, hidden_dim=16)
    observations, actions = batch(500, 5, action_dim)
    actions *= torch.rand(action_dim)
    fit_uniform(model, observations, actions, iter([1, 2]), restart_every=500)
    cells = model.bins.prod().item()
    assert max(1, codebook_size // 2) <= cells <= codebook_size  # one more bin somewhere would be too many
    assert ((model.bins + 1) * cells // model.bins > codebook_size).all()
    codes = model.encode(observations, actions)
    centres = model.codebook[:cells]
    distances = (actions[:, None] - centres).square().sum(2)
    torch.testing.assert_close(distances[torch.arange(500), codes], distances.amin(1))
    assert torch.equal(model.decode(observations, codes), centres[codes])
    middle = (actions.amin(0) + actions.amax(0)) / 2
    torch.testing.assert_close(model.codebook[cells:], middle.expand(codebook_size - cells, -1))


KINDS = {"vqvae": VQVAE, "aquadem": Aquadem, "action-only": ActionOnly, "uniform": Uniform}


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_and_no_other_kind_loads_it(tmp_path, kind):
    observations, actions = batch()
    model = KINDS[kind].for_data(observations, actions, **SMALL)
    {Uniform: fit_uniform, Aquadem: train_aquadem}.get(KINDS[kind], train_vqvae)(model, observations, actions, 20)
    model.save(tmp_path / "vqvae.pt")
    for name, other in KINDS.items():
        if name != kind:
            with pytest.raises(OSError, match="not a VQ-VAE"):
                other.load(tmp_path / "vqvae.pt")
    loaded = KINDS[kind].load(tmp_path / "vqvae.pt")
    assert loaded.config == model.config
    assert torch.equal(loaded.standardize.std, model.standardize.std)
    again = KINDS[kind].for_data(observations, actions, **SMALL)
    again.load_weights(tmp_path / "vqvae.pt")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    codes = loaded.encode(observations, actions)
    assert torch.equal(codes, model.encode(observations, actions))
    assert torch.equal(loaded.decode(observations, codes), model.decode(observations, codes))


STEPS = ["--vqvae-steps=20", "--total-steps=20", "--hidden-dim=16", "--final-eval-episodes=1", "--checkpoint-every=10"]
LAUNCHERS = {
    "aquadem": ["baselines/aquadem.py"],
    "quantizers_action-only": ["quantizers.py", "action-only"],
    "quantizers_uniform": ["quantizers.py", "uniform"],
}


def run(*words, folder, code=0):
    command = [sys.executable, str(ROOT / "benchmark" / words[0]), *map(str, words[1:])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_runs_continues_and_shares_its_quantizer(tmp_path, name):
    words = LAUNCHERS[name]
    run(*words, "bc", *STEPS, "--device=cpu", "--total-steps=10", folder=tmp_path)
    folder = only(tmp_path / "runs")
    assert folder.name.startswith(f"fetch-pick-and-place-demo-v0__{name}_bc__1__")
    before = (folder / "result.json").read_text()
    quantizer = torch.load(folder / "vqvae.pt", weights_only=True)["weights"]

    run(*words, "bc", "--resume", folder, "--total-steps=20", folder=tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert (result["algorithm"], result["total_steps"]) == (f"{name}_bc", 20)
    assert result["vqvae"] == json.loads(before)["vqvae"]
    assert 0 < result["vqvae"]["reconstruction_error"] < 4 and 1 <= result["vqvae"]["codes_used"] <= 64
    again = torch.load(folder / "vqvae.pt", weights_only=True)["weights"]
    assert all(torch.equal(again[key], value) for key, value in quantizer.items())

    shared = [f"--vqvae-path={folder / 'vqvae.pt'}", *STEPS, "--device=cpu", "--runs-dir=other", "--bc-steps=10"]
    run(*words, "iql", *shared, folder=tmp_path)
    other = json.loads((only(tmp_path / "other") / "result.json").read_text())
    assert other["algorithm"] == f"{name}_iql" and other["vqvae"] == result["vqvae"]


def test_a_plain_vqvae_is_refused_in_one_line(tmp_path):
    VQVAE(28, 4, hidden_dim=16).save(tmp_path / "vqvae.pt")
    done = run("baselines/aquadem.py", "cql", *STEPS, "--vqvae-path=vqvae.pt", folder=tmp_path, code=2)
    assert done.stderr.startswith("error: vqvae.pt is") and done.stderr.count("\n") == 1


def test_a_wrong_word_is_one_line(tmp_path):
    done = run("baselines/aquadem.py", "sac", folder=tmp_path, code=2)
    assert done.stdout == "" and done.stderr.endswith("one of bc, iql, cql, brac as its next word, it is 'sac'\n")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("rest", [[], ["sac"], ["--seed=1", "bc"]])
def test_a_missing_word_is_an_error_too(monkeypatch, capsys, rest):
    monkeypatch.setattr(sys, "argv", ["quantizers.py", *rest])
    with pytest.raises(SystemExit) as ended:
        take_word(["bc", "iql"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: quantizers.py needs one of bc, iql")


def test_the_name_keeps_the_words(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quantizers.py", "uniform", "bc", "--seed=1"])
    assert (take_word(["uniform"]), take_word(["bc"])) == ("uniform", "bc")
    assert sys.argv == ["quantizers.py uniform bc", "--seed=1"]


def test_help(tmp_path):
    shown = run("baselines/aquadem.py", "brac", "--help", folder=tmp_path).stdout
    assert "aquadem.py brac" in shown and "--tau" in shown and "gradient steps of the VQ-VAE" in shown
