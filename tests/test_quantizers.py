"""Quantizers in place of the VQ-VAE: the uniform grid, and with the algorithm files also Aquadem."""

import json
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmark"))
sys.path.insert(0, str(ROOT / "benchmark" / "baselines"))
import quantizers
from aquadem import Aquadem
from quantizers import Uniform, divide, fit_uniform

import saq_bc
import saq_iql
from vqvae import VQVAE, train_vqvae

SMALL = {"codebook_size": 12, "hidden_dim": 32}


def batch(rows=300, observation_dim=5, action_dim=3):
    return torch.randn(rows, observation_dim), torch.rand(rows, action_dim) * 2 - 1


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
    fit_uniform(model, observations, actions, iter([1, 2]), dead_code_reset_every=500)
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


KINDS = {"vqvae": VQVAE, "aquadem": Aquadem, "uniform": Uniform}


def train(kind, model, observations, actions):
    if kind == "uniform":
        fit_uniform(model, observations, actions)
    else:
        train_vqvae(model, observations, actions, 20, dead_code_reset_every=0)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_and_no_other_kind_loads_it(tmp_path, kind):
    observations, actions = batch()
    model = KINDS[kind].for_data(observations, actions, **SMALL)
    train(kind, model, observations, actions)
    model.save(tmp_path / "vqvae.pt")
    for name, other in KINDS.items():
        if name != kind:
            with pytest.raises(OSError, match="not a readable"):
                other.load(tmp_path / "vqvae.pt")
    loaded = KINDS[kind].for_data(observations, actions, **SMALL)
    loaded.load_weights(tmp_path / "vqvae.pt")
    codes = loaded.encode(observations, actions)
    assert torch.equal(codes, model.encode(observations, actions))
    assert torch.equal(loaded.decode(observations, codes), model.decode(observations, codes))
    probabilities = model.soft_codes(observations, actions)
    assert torch.equal(probabilities.argmax(1), codes)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(codes)))
    torch.testing.assert_close(probabilities[:5], loaded.soft_codes(observations[:5], actions[:5]))


STEPS = ["--vqvae-steps=20", "--hidden-dim=16", "--final-eval-episodes=1", "--device=cpu"]


@pytest.mark.parametrize("name", ["aquadem", "uniform"])
def test_a_launcher_runs_continues_and_shares_its_quantizer(tmp_path, monkeypatch, name):
    for module in (saq_bc, saq_iql):  # `quantizers.main` replaces these for good
        for attribute in ("VQVAE", "train_vqvae", "Run"):
            monkeypatch.setattr(module, attribute, getattr(module, attribute))

    def run(*words, folder):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, *STEPS, f"--run-dir={tmp_path / folder}"])
        if name == "aquadem":
            quantizers.main("aquadem", Aquadem, train_vqvae, dead_code_reset_every=0)
        else:
            quantizers.main("uniform", Uniform, fit_uniform)
        return json.loads((tmp_path / folder / "result.json").read_text())

    first = run("bc", "--bc-steps=10", folder="bc")
    weights = torch.load(tmp_path / "bc" / "vqvae.pt", weights_only=True)["weights"]
    continued = run("bc", "--bc-steps=20", folder="bc")
    assert (continued["algorithm"], continued["total_steps"]) == (f"{name}_bc", 20)
    assert continued["vqvae"] == first["vqvae"]
    assert 0 < first["vqvae"]["reconstruction_error"] < 4 and 1 <= first["vqvae"]["codes_used"] <= 64
    again = torch.load(tmp_path / "bc" / "vqvae.pt", weights_only=True)["weights"]
    assert all(torch.equal(again[key], value) for key, value in weights.items())

    path = f"--vqvae-path={tmp_path / 'bc' / 'vqvae.pt'}"
    shared = run("iql", path, "--bc-steps=10", "--rl-steps=10", folder="iql")
    assert shared["algorithm"] == f"{name}_iql" and shared["vqvae"] == first["vqvae"]

    VQVAE(28, 4, hidden_dim=16).save(tmp_path / "plain.pt")
    with pytest.raises(SystemExit):
        run("iql", f"--vqvae-path={tmp_path / 'plain.pt'}", "--bc-steps=10", folder="other")


@pytest.mark.parametrize("words", [[], ["sac"], ["--seed=1", "bc"]])
def test_a_wrong_or_missing_algorithm_is_one_line(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["quantizers.py", *words])
    with pytest.raises(SystemExit) as stopped:
        quantizers.main("uniform", Uniform, fit_uniform)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: the first word must be one of bc, iql, cql, brac; flags follow\n"
