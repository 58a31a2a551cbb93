"""examples/act.py on short runs of the four algorithms."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from conftest import ALGORITHMS, ROOT

sys.path.insert(0, str(ROOT / "examples"))
import act


@pytest.fixture(scope="module", params=ALGORITHMS)
def run(request, tmp_path_factory):
    """The folder of a short run, and its algorithm file."""
    module = import_module(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    steps = {"vqvae_steps": 30, "bc_steps": 30}
    if request.param != "saq_bc":
        steps["rl_steps"] = 30
    small = {"codebook_size": 8, "hidden_dim": 16, "final_eval_episodes": 3, "device": "cpu", "seed": 5}
    module.main(module.Args(run_dir=str(folder), **small, **steps))
    return folder, module


def test_the_runs_own_mode_and_seed_give_its_last_evaluation(run, capsys):
    folder, module = run
    act.main(act.Args([folder], episodes=3, seed=5))
    mode = module.Args().action_mode
    ours, theirs = np.load(folder / f"eval_{mode}.npz"), np.load(folder / "eval.npz")
    for name in ("seeds", "returns", "lengths", "scores"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert capsys.readouterr().out.count("return") == 3


def test_another_mode_is_kept_beside_it(run):
    folder, _ = run
    before = (folder / "eval.npz").read_bytes()
    result = act.main(act.Args([folder], action_mode="sampled", episodes=2))
    np.testing.assert_array_equal(np.load(folder / "eval_sampled.npz")["returns"], result["returns"])
    assert (folder / "eval.npz").read_bytes() == before


def test_the_loaded_policy_is_the_one_that_was_evaluated(run, monkeypatch):
    """The same actions as the policy that `main` gives to `finish`, in every mode."""
    folder, module = run
    policy, model = act.load_policy(folder)
    assert model["algorithm"] == module.__name__ and len(model["action_low"]) == 4
    observations = torch.randn(6, 28)
    finish = module.Run.finish

    def compare(self, evaluated, step, modules, **summary):
        for mode in ("mean", "greedy", "sampled"):
            generators = [torch.Generator().manual_seed(0) for _ in range(2)]
            with torch.no_grad():
                expected = evaluated(observations, mode, generators[0])
            torch.testing.assert_close(policy(observations, mode, generators[1]), expected)
        return finish(self, evaluated, step, modules, **summary)

    monkeypatch.setattr(module.Run, "finish", compare)
    args = module.Args(**{**model["args"], "run_dir": str(folder)})  # the finished run again
    module.main(args)


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    for name in ("nothing", "file"):
        if name == "file":
            (tmp_path / name).mkdir()
            (tmp_path / name / "vqvae.pt").write_bytes(b"damaged")
        with pytest.raises(SystemExit) as stopped:
            act.main(act.Args([tmp_path / name]))
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("names", [[], ["run", "run"], ["nothing*"]])
def test_two_runs_or_none_are_one_line(names, tmp_path, capsys):
    """As a shell expands a pattern that matches two folders, or none."""
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit) as stopped:
        act.main(tyro.cli(act.Args, args=[str(tmp_path / name) for name in names]))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "name the folder of one run" in line


def test_a_tilde_is_the_home_folder(run, monkeypatch):
    folder, _ = run
    monkeypatch.setenv("HOME", str(folder.parent))
    act.load_policy(f"~/{folder.name}")
    act.main(act.Args([Path("~") / folder.name], episodes=1))
