"""The continuous baselines: losses against brute force, a known MDP, and runs that stop and continue."""

import copy
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats
from torch.distributions import TanhTransform, TransformedDistribution, kl_divergence

FOLDER = ROOT / "benchmark" / "baselines"
sys.path.insert(0, str(FOLDER))

import bc  # noqa: E402  (the baselines are scripts, not a package)
import brac  # noqa: E402
import cql  # noqa: E402
import iql  # noqa: E402

from vqvae import Standardize  # noqa: E402

BASELINES = (bc, iql, cql, brac)
STANDARDIZE = Standardize(torch.tensor([1.0, 0.0, -1.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 0.5]))
SIZES = SimpleNamespace(hidden_dim=16, layer_norm=True)
NO_NORM = SimpleNamespace(hidden_dim=16, layer_norm=False)  # distributions that are not too narrow for a grid
by_name = pytest.mark.parametrize("module", BASELINES, ids=lambda module: module.__name__)


def squashed(normal):
    """The distribution of tanh(u), from PyTorch."""
    return TransformedDistribution(normal, TanhTransform())


def test_twin_q_standardizes_observations_and_not_actions():
    q = cql.TwinQ(STANDARDIZE, 2, SIZES)
    observations, actions = torch.randn(32, 4), torch.randn(32, 2)
    inputs = torch.cat([STANDARDIZE(observations), actions], 1)
    values = q(observations, actions)
    assert values.shape == (2, 32)
    for member, value in zip(q.members, values):
        torch.testing.assert_close(member[1:](inputs).squeeze(1), value)


def test_fixed_weights_get_no_gradient_and_actions_do():
    q = cql.TwinQ(STANDARDIZE, 2, SIZES)
    observations, actions = torch.randn(32, 4), torch.randn(32, 2, requires_grad=True)
    q(observations, actions).sum().backward()
    expected = actions.grad.clone()
    q.zero_grad()
    actions.grad = None
    values = q.with_fixed_weights(observations, actions)
    values.sum().backward()
    torch.testing.assert_close(values, q(observations, actions))
    torch.testing.assert_close(actions.grad, expected)
    assert all(parameter.grad is None for parameter in q.parameters())


def test_gaussian_policy_has_the_gaussian_likelihood():
    policy = bc.GaussianPolicy(STANDARDIZE, 2, SIZES)
    policy.log_std.data = torch.tensor([0.3, -9.0])  # the second is clamped to -5
    observations, actions = torch.randn(32, 4), torch.rand(32, 2) * 2 - 1
    normal = policy(observations)
    mean, std = normal.mean.detach().numpy(), normal.stddev.detach().numpy()
    assert (np.abs(mean) < 1).all() and std[0] == pytest.approx(np.exp([0.3, -5.0]))
    expected = stats.norm(mean, std).logpdf(actions.numpy()).sum(1)
    np.testing.assert_allclose(policy.log_prob(observations, actions).detach(), expected, rtol=1e-4)


@pytest.mark.parametrize("policy_class", [bc.GaussianPolicy, cql.TanhGaussianPolicy])
def test_policies_sample_their_distribution(policy_class):
    policy = policy_class(STANDARDIZE, 2, NO_NORM)
    observations = torch.randn(1, 4).expand(20_000, 4)
    samples = policy.act(observations, "sampled", torch.Generator().manual_seed(0))
    mean = policy.act(observations, "mean", None)
    if policy_class is cql.TanhGaussianPolicy:
        samples, mean = samples.atanh(), mean.atanh()
    normal = policy(observations[:1])
    torch.testing.assert_close(mean, normal.mean.expand_as(mean), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(samples.mean(0), normal.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), normal.stddev[0], atol=0.05, rtol=0)


def test_tanh_gaussian_density_integrates_to_one():
    policy = cql.TanhGaussianPolicy(STANDARDIZE, 2, NO_NORM)
    cells = (torch.arange(1000) + 0.5) / 1000
    grid = torch.cartesian_prod(2.0 * cells - 1.0, 2.0 * cells - 1.0)
    total = policy.log_prob(policy(torch.randn(1, 4)), grid.atanh()).exp().mean() * 4.0
    assert total.item() == pytest.approx(1.0, abs=0.01)


def test_behavior_loss_is_the_likelihood_of_actions():
    policy = cql.TanhGaussianPolicy(STANDARDIZE, 2, SIZES)
    observations, actions = torch.randn(32, 4), 1.96 * torch.rand(32, 2) - 0.98
    expected = -squashed(policy(observations)).log_prob(actions).sum(1).mean()
    torch.testing.assert_close(brac.behavior_loss(policy, observations, actions), expected, atol=1e-3, rtol=1e-3)


def test_iql_loss_is_the_equations():
    q, v, q_target = torch.randn(2, 32), torch.randn(32, requires_grad=True), torch.randn(32)
    td_target, log_prob = torch.randn(32), torch.randn(32, requires_grad=True)
    losses = iql.iql_loss(q, v, q_target, td_target, log_prob, 0.7, 4.0)
    expected = np.zeros(3)
    limited = 0
    for i in range(32):
        advantage = q_target[i].item() - v[i].item()
        weight = np.exp(4.0 * advantage)
        limited += weight > 100
        expected[0] += abs(0.7 - (advantage < 0)) * advantage**2
        expected[1] += (q[0, i].item() - td_target[i].item()) ** 2 + (q[1, i].item() - td_target[i].item()) ** 2
        expected[2] -= min(weight, 100) * log_prob[i].item()
    assert 0 < limited < 32
    np.testing.assert_allclose([loss.item() for loss in losses], expected / 32, rtol=1e-4)
    losses[2].backward()
    assert v.grad is None and log_prob.grad.abs().min() > 0  # the policy's loss does not move V


def test_the_mean_of_softmax_q_converges_to_the_integral():
    actor, q = cql.TanhGaussianPolicy(STANDARDIZE, 2, SIZES), cql.TwinQ(STANDARDIZE, 2, SIZES)
    for member in q.members:
        member[-1].weight.data *= 10.0  # far from uniform
    observations, generator = torch.randn(3, 4), torch.Generator().manual_seed(0)
    actions = cql.softmax_mean(q, actor, observations, generator, samples=100_000)
    cells = (torch.arange(300) + 0.5) / 300
    grid = 2.0 * torch.cartesian_prod(cells, cells) - 1.0
    for observation, action in zip(observations, actions):
        values = q(observation.expand(len(grid), -1), grid).amin(0).detach()
        expected = values.softmax(0) @ grid
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(action, expected, atol=0.02, rtol=0)


def test_the_sampled_log_integral_converges_to_the_integral():
    actor, q = cql.TanhGaussianPolicy(STANDARDIZE, 2, SIZES), cql.TwinQ(STANDARDIZE, 2, SIZES)
    for member in q.members:
        member[-1].weight.data *= 10.0  # values that differ
    observations, n = torch.randn(2, 4), 4000
    normal, next_normal = actor(observations), actor(torch.randn(2, 4))
    uniform, noise = 2 * torch.rand(n, 2, 2) - 1, torch.randn(n, 2, 2, 2)
    actions, log_densities = cql.sample_actions(actor, normal, next_normal, uniform, noise)
    assert actions.shape == (3 * n, 2, 2) and not actions.requires_grad and not log_densities.requires_grad
    values = q(observations.repeat(3 * n, 1), actions.flatten(0, 1)).unflatten(1, (3 * n, 2))
    _, penalty = cql.cql_loss(torch.zeros(2, 2), torch.zeros(2), values, log_densities)
    cells = (torch.arange(400) + 0.5) / 400
    grid = 2.0 * torch.cartesian_prod(cells, cells) - 1.0
    expected = 0.0
    for observation in observations:
        log_integral = q(observation.expand(len(grid), -1), grid).exp().mean(1).log() + np.log(4.0)
        expected += log_integral.sum().item() / 2
    assert penalty.item() == pytest.approx(expected, abs=0.03)


def test_the_kl_of_the_gaussians_is_the_kl_of_the_actions():
    actor, behavior = cql.TanhGaussianPolicy(STANDARDIZE, 2, SIZES), cql.TanhGaussianPolicy(STANDARDIZE, 2, SIZES)
    observations = torch.randn(1, 4)
    p, q = actor(observations), behavior(observations)
    u = p.sample((200_000,))
    sampled = (actor.log_prob(p, u) - behavior.log_prob(q, u)).mean()
    torch.testing.assert_close(kl_divergence(p, q).sum(), sampled, atol=0.01, rtol=0.02)


def run_on(module, monkeypatch, data, **flags):
    """Run `module.main` on the data, without an environment. Returns its arguments, policy and modules."""
    ran = SimpleNamespace()

    def evaluate(policy, episodes, seed, video):
        ran.policy = policy
        return dict.fromkeys(("seeds", "returns", "lengths", "scores"), np.zeros(episodes))

    task = SimpleNamespace(
        env_id="none", max_episode_steps=20, eval_episodes=2, dataset_scores=[1.0], action_low=[-1], action_high=[1],
        evaluate=evaluate, print_scores=print,
    )  # fmt: skip

    class Recorder(module.Run):
        def log(self, metrics):
            """Keep the metrics of a step, and the state before it."""
            ran.metrics = {name: value.item() for name, value in metrics.items()}
            if self.step < self.total:
                ran.networks, ran.generator = copy.deepcopy(dict(self.modules)), self.generator.clone_state()
            super().log(metrics)

        def finish(self, policy, step, modules, **summary):
            ran.modules = modules
            return super().finish(policy, step, modules, **summary)

    monkeypatch.setattr(module, "load_task", lambda args, device: (task, data))
    monkeypatch.setattr(module, "Run", Recorder)
    ran.result = module.main(module.Args(device="cpu", **flags))
    return ran


@pytest.mark.parametrize("module", [iql, cql, brac], ids=lambda module: module.__name__)
def test_a_gradient_step_is_the_equations(module, monkeypatch, tmp_path):
    """The second step, when the policies and target networks differ, against formulas in plain PyTorch."""
    data = {"observations": torch.randn(50, 4), "next_observations": torch.randn(50, 4), "rewards": torch.randn(50)}
    data |= {"actions": 1.96 * torch.rand(50, 2) - 0.98, "terminals": (torch.rand(50) < 0.3).float()}
    data["ends"] = torch.ones(50, dtype=torch.bool)
    own = {iql: {"beta": 2.0}, cql: {"n_actions": 3}, brac: {"bc_steps": 0, "alpha": 0.7}}[module]
    flags = {"hidden_dim": 16, "batch_size": 32, "rl_steps": 2, "gamma": 0.9, "value_scale": 0.0, **own}
    step = run_on(module, monkeypatch, data, run_dir=str(tmp_path), **flags)
    net, metrics = step.networks, step.metrics
    idx = torch.randint(50, (32,), generator=step.generator)
    obs, next_obs, action, reward, terminal = (
        data[name][idx] for name in ("observations", "next_observations", "actions", "rewards", "terminals")
    )
    q = net["q"](obs, action)

    def backup(next_value):
        return reward + 0.9 * (1 - terminal) * next_value

    if module is iql:
        v, log_prob = net["v"](obs).squeeze(1), net["actor"].log_prob(obs, action)
        y = backup(net["v"](next_obs).squeeze(1))
        losses = iql.iql_loss(q, v, net["q_target"](obs, action).amin(0), y, log_prob, 0.7, 2.0)
        expected = {"v_loss": losses[0], "q_loss": losses[1], "actor_loss": losses[2]}
    elif module is cql:
        uniform = 2 * torch.rand(3, 32, 2, generator=step.generator) - 1
        noise = torch.randn(4, 2, 32, 2, generator=step.generator)
        pi, next_pi = net["actor"](obs), net["actor"](next_obs)
        here, there = pi.mean + pi.stddev * noise[:, 0], next_pi.mean + next_pi.stddev * noise[:, 1]
        y = backup(net["q_target"](next_obs, there[0].tanh()).amin(0))
        terms = [4 * net["q"](obs, a).exp() for a in uniform]  # the volume of the action space is 2 x 2
        for normal, us in ((pi, here[1:]), (next_pi, there[1:])):
            for u in us:
                terms.append(net["q"](obs, u.tanh()).exp() / squashed(normal).log_prob(u.tanh()).sum(1).exp())
        log_prob = squashed(pi).log_prob(here[0].tanh()).sum(1)
        eta = net["entropy"]["log_eta"].exp()
        assert eta != 1
        expected = {
            "td_loss": (q - y).square().mean(1).sum(),
            "penalty": (torch.stack(terms).mean(0).log() - q).mean(1).sum(),
            "actor_loss": (eta * log_prob - net["q"](obs, here[0].tanh()).amin(0)).mean(),
            "entropy": -log_prob.mean(),
        }
    else:
        noise = torch.randn(2, 32, 2, generator=step.generator)
        pi, next_pi = net["actor"](obs), net["actor"](next_obs)
        kl = kl_divergence(pi, net["behavior_ema"](obs)).sum(1)
        next_kl = kl_divergence(next_pi, net["behavior_ema"](next_obs)).sum(1)
        assert kl.min() > 0
        next_action, chosen = (next_pi.mean + next_pi.stddev * noise[1]).tanh(), (pi.mean + pi.stddev * noise[0]).tanh()
        y = backup(net["q_target"](next_obs, next_action).amin(0) - 0.7 * next_kl)
        expected = {
            "q_loss": (q - y).square().mean(1).sum(),
            "actor_loss": (0.7 * kl - net["q"](obs, chosen).amin(0)).mean(),
            "kl": kl.mean(),
        }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("module", [iql, cql, brac], ids=lambda module: module.__name__)
def test_baselines_find_the_way_out_of_a_known_mdp(corridor, module, monkeypatch, tmp_path):
    data = {name: getattr(corridor, name) for name in ("observations", "actions", "next_observations")}
    data |= {"rewards": corridor.returns, "terminals": (corridor.returns == 1).float()}
    data["ends"] = torch.ones(len(corridor.actions), dtype=torch.bool)
    own = {
        iql: {"expectile": 0.9, "beta": 1.0},
        cql: {"alpha": 0.1, "n_actions": 4},
        brac: {"alpha": 1.0, "bc_steps": 300},
    }[module]
    flags = {"hidden_dim": 32, "batch_size": 128, "rl_steps": 800, "gamma": 0.9, "value_scale": 20.0, **own}
    ran = run_on(module, monkeypatch, data, run_dir=str(tmp_path), **flags)
    actions = ran.policy(np.eye(4)).squeeze(1)
    assert (np.abs(actions - corridor.best) < 0.4).all(), actions
    q = ran.modules["q"](torch.eye(4), torch.from_numpy(corridor.best)[:, None]).amin(0).detach()
    values = q.numpy() / ran.result["reward_scale"]
    assert (values > corridor.random_values + 0.05).all()
    np.testing.assert_allclose(values, corridor.optimal_values, atol=0.25)


@by_name
def test_a_run_continues_to_the_same_bits(tmp_path, module):
    steps = "bc_steps" if module is bc else "rl_steps"
    small = {"hidden_dim": 16, "eval_every": 20, "eval_episodes": 2, "final_eval_episodes": 3, "device": "cpu"}
    small |= {brac: {"bc_steps": 20}, cql: {"n_actions": 2}}.get(module, {})
    result = module.main(module.Args(run_dir=str(tmp_path / "a"), **small, **{steps: 40}))
    assert result["algorithm"] == module.__name__ and len(result["normalized_scores"]) == 3
    assert np.load(tmp_path / "a" / "eval.npz")["step"].tolist() == [20, 20, 40, 40, 40]

    for count in (30, 40):
        module.main(module.Args(run_dir=str(tmp_path / "b"), **small, **{steps: count}))
    whole, continued = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in "ab")
    for name, weight in whole["modules"].items():
        assert torch.equal(weight, continued["modules"][name]), name


@pytest.mark.parametrize(("module", "steps"), [(bc, 3000), (iql, 6000), (cql, 6000), (brac, 3000)])
def test_default_steps_where_policy_and_q_learn_together_are_twice_as_many(module, steps, monkeypatch):
    class Stop(Exception):
        pass

    def run(algorithm, args, *rest, **more):
        raise Stop(args)

    monkeypatch.setattr(module, "Run", run)
    with pytest.raises(Stop) as stopped:
        module.main(module.Args())
    args = vars(stopped.value.args[0])
    assert args.get("rl_steps", args.get("bc_steps")) == steps
    if module is not bc:
        assert (args["gamma"], args["n_step"]) == (pytest.approx(1 - 600 / 21673), 1)


@by_name
def test_arguments_have_the_defaults_of_the_discrete_twin(module):
    ours, theirs = vars(module.Args()), vars(import_module(f"saq_{module.__name__}").Args())
    different = {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    assert different <= {"alpha", "action_mode"}


def test_bad_input_is_reported():
    with pytest.raises(ValueError, match="n_actions must be between"):
        cql.Args(n_actions=0)
    command = [sys.executable, FOLDER / "cql.py", "--env-id=hoper"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "hoper" in done.stderr and len(done.stderr.splitlines()) == 1
