"""The continuous baselines: losses against brute force, a known MDP, and the scripts as a user runs them."""

import ast
import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats
from test_script import same
from test_shared import named

BASELINES = ("bc", "iql", "cql", "brac")
FOLDER = ROOT / "benchmark" / "baselines"
sys.path.insert(0, str(FOLDER))

from bc import GaussianPolicy, bc_loss, default_steps  # noqa: E402  (the baselines are scripts, not a package)
from brac import behavior_loss, brac_loss  # noqa: E402
from cql import TanhGaussianPolicy, TwinQ, cql_loss, n_step_returns, n_step_transitions, softmax_mean  # noqa: E402
from iql import iql_loss, mlp  # noqa: E402

from vqvae import Standardize  # noqa: E402

STANDARDIZE = Standardize(torch.tensor([1.0, 0.0, -1.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 0.5]))


def named_of(path):
    source = path.read_text()
    return named(ast.parse(source), source)


def batch(rows=32):
    return {
        "observations": torch.randn(rows, 4),
        "actions": 1.96 * torch.rand(rows, 2) - 0.98,
        "returns": torch.randn(rows),
        "next_observations": torch.randn(rows, 4),
        "discounts": 0.9 * (torch.rand(rows) < 0.7),
    }


def double_q(hidden=16):
    return [TwinQ(STANDARDIZE, 2, hidden, True) for _ in range(2)]


def test_twin_q_standardizes_observations_and_not_actions():
    q, _ = double_q()
    data = batch()
    inputs = torch.cat([STANDARDIZE(data["observations"]), data["actions"]], 1)
    values = q(data["observations"], data["actions"])
    assert values.shape == (2, 32)
    for member, value in zip(q.members, values):
        torch.testing.assert_close(member[1:](inputs).squeeze(1), value)


def test_bc_loss_is_the_gaussian_likelihood():
    policy, data = GaussianPolicy(STANDARDIZE, 2, 16, True), batch()
    policy.log_std.data = torch.tensor([0.3, -9.0])  # the second is held at -5
    mean, std = (x.detach().numpy() for x in policy(data["observations"]))
    assert std[1] == pytest.approx(np.exp(-5.0))
    expected = -stats.norm(mean, std).logpdf(data["actions"].numpy()).sum(1).mean()
    assert bc_loss(policy, data["observations"], data["actions"])["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert (np.abs(mean) < 1).all()


@pytest.mark.parametrize("policy_class", [GaussianPolicy, TanhGaussianPolicy])
def test_policies_sample_their_distribution(policy_class):
    policy = policy_class(STANDARDIZE, 2, 16, False)
    observations = torch.randn(1, 4).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    samples = policy.act(observations, "sampled", generator)
    mean = policy.act(observations, "mean", generator)
    assert (mean == mean[0]).all()
    distribution = policy(observations[:1])
    if policy_class is TanhGaussianPolicy:
        samples, mean = samples.atanh(), mean.atanh()
        distribution = distribution.mean, distribution.stddev
    torch.testing.assert_close(mean[:1], distribution[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(samples.mean(0), distribution[0][0], atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), distribution[1].expand(1, 2)[0], atol=0.05, rtol=0)


def test_tanh_gaussian_density_integrates_to_one():
    policy = TanhGaussianPolicy(STANDARDIZE, 2, 16, False)
    normal = policy(torch.randn(1, 4))

    cells = (torch.arange(1000) + 0.5) / 1000
    grid = torch.cartesian_prod(2.0 * cells - 1.0, 2.0 * cells - 1.0)
    total = policy.log_prob(normal, grid.atanh()).exp().mean() * 4.0
    assert total.item() == pytest.approx(1.0, abs=0.01)


def test_behavior_loss_is_the_likelihood_of_actions():
    policy, data = TanhGaussianPolicy(STANDARDIZE, 2, 16, True), batch()
    normal = policy(data["observations"])
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    reference = squashed.log_prob(data["actions"]).sum(1)
    loss = behavior_loss(policy, data["observations"], data["actions"])["loss"]
    torch.testing.assert_close(loss, -reference.mean(), atol=1e-3, rtol=1e-3)


def test_iql_loss_is_the_equations():
    (q, q_target), v, actor = double_q(), mlp(STANDARDIZE, 1, 16, False), GaussianPolicy(STANDARDIZE, 2, 16, True)
    data, beta = batch(), 40.0  # so that some weights meet their limit
    metrics = iql_loss(q, q_target, v, actor, data, expectile=0.7, beta=beta)
    v_loss, q_loss, actor_loss, limited = [], [], [], 0
    for i in range(32):
        row = {key: value[i : i + 1] for key, value in data.items()}
        here, action = row["observations"], row["actions"]
        u = min(q_target(here, action)[:, 0].tolist()) - v(here).item()
        v_loss.append(abs(0.7 - (u < 0)) * u**2)
        y = row["returns"].item() + row["discounts"].item() * v(row["next_observations"]).item()
        q_loss.append(sum((value - y) ** 2 for value in q(here, action)[:, 0].tolist()))
        limited += np.exp(beta * u) > 100
        actor_loss.append(-min(np.exp(beta * u), 100.0) * actor.log_prob(here, action).item())
    assert 0 < limited < 32
    assert metrics["v_loss"].item() == pytest.approx(np.mean(v_loss), rel=1e-4)
    assert metrics["q_loss"].item() == pytest.approx(np.mean(q_loss), rel=1e-4)
    assert metrics["actor_loss"].item() == pytest.approx(np.mean(actor_loss), rel=1e-3)
    total = np.mean(v_loss) + np.mean(q_loss) + np.mean(actor_loss)
    assert metrics["loss"].item() == pytest.approx(total, rel=1e-3)


def cql_inputs(n=3, **changes):
    q, q_target = double_q()
    inputs = {"q": q, "q_target": q_target, "actor": TanhGaussianPolicy(STANDARDIZE, 2, 16, True)}
    inputs |= {"batch": batch(), "log_entropy_weight": torch.tensor(0.3, requires_grad=True), "alpha": 2.0}
    inputs |= {"uniform": 2 * torch.rand(n, 32, 2) - 1, "noise": torch.randn(1 + n, 2, 32, 2)}
    return inputs | changes


def test_cql_loss_is_the_equations():
    inputs = cql_inputs()
    q, q_target, actor, data = (inputs[name] for name in ("q", "q_target", "actor", "batch"))
    metrics = cql_loss(**inputs)
    td_loss, conservative, actor_loss, log_probs = [], [], [], []
    for i in range(32):
        here, there = data["observations"][i : i + 1], data["next_observations"][i : i + 1]
        normals = actor(here), actor(there)

        def drawn(j, state, normals=normals, i=i):
            u = normals[state].mean + normals[state].stddev * inputs["noise"][j, state, i]
            return u.tanh(), actor.log_prob(normals[state], u)

        y = q_target(there, drawn(0, 1)[0]).min() * data["discounts"][i] + data["returns"][i]
        taken = q(here, data["actions"][i : i + 1])[:, 0]
        td_loss.append((taken - y).square().sum().item())
        terms = []
        for j in range(3):
            terms.append(q(here, inputs["uniform"][j, i][None])[:, 0].exp() * 4.0)  # the space's volume is 2 x 2
            for state in (0, 1):
                action, log_prob = drawn(1 + j, state)
                terms.append((q(here, action)[:, 0] - log_prob).exp())
        conservative.append((torch.stack(terms).mean(0).log() - taken).sum().item())
        action, log_prob = drawn(0, 0)
        log_probs.append(log_prob.item())
        actor_loss.append((np.exp(0.3) * log_prob - q(here, action).min()).item())
    assert metrics["td_loss"].item() == pytest.approx(np.mean(td_loss), rel=1e-4)
    assert metrics["cql_loss"].item() == pytest.approx(np.mean(conservative), rel=1e-3)
    assert metrics["actor_loss"].item() == pytest.approx(np.mean(actor_loss), rel=1e-3)
    assert metrics["entropy"].item() == pytest.approx(-np.mean(log_probs), rel=1e-3)
    total = np.mean(td_loss) + 2 * np.mean(conservative) + np.mean(actor_loss)
    total += np.exp(0.3) * (-np.mean(log_probs) + 2)  # grows eta where the entropy is below -2
    assert metrics["loss"].item() == pytest.approx(total, rel=1e-3)


def test_the_mean_of_softmax_q_converges_to_the_integral():
    torch.manual_seed(0)
    actor, q = TanhGaussianPolicy(STANDARDIZE, 2, 16, False), TwinQ(STANDARDIZE, 2, 16, False)
    for member in q.members:
        member[-1].weight.data *= 30.0  # far from uniform
    observations, generator = torch.randn(3, 4), torch.Generator().manual_seed(0)
    actions = softmax_mean(q, actor, observations, generator, samples=100_000)
    cells = (torch.arange(300) + 0.5) / 300
    grid = 2.0 * torch.cartesian_prod(cells, cells) - 1.0
    for observation, action in zip(observations, actions):
        values = q(observation.expand(len(grid), -1), grid).amin(0).detach()
        expected = values.softmax(0) @ grid
        assert (expected - grid.mean(0)).abs().max() > 0.1
        torch.testing.assert_close(action, expected, atol=0.02, rtol=0)


def test_the_sampled_log_integral_converges_to_the_integral():
    inputs = cql_inputs(n=4000)
    data = inputs["batch"] = {name: column[:2] for name, column in inputs["batch"].items()}
    inputs |= {"uniform": inputs["uniform"][:, :2], "noise": inputs["noise"][:, :, :2]}
    q = inputs["q"]
    for member in q.members:
        member[-1].weight.data *= 10.0  # values that differ
    x, y = torch.meshgrid(torch.linspace(-1, 1, 401), torch.linspace(-1, 1, 401), indexing="ij")
    grid = torch.stack([x.flatten(), y.flatten()], 1)
    expected = 0.0
    for i in range(2):
        here = data["observations"][i : i + 1]
        values = q(here.expand(len(grid), -1), grid).detach()
        log_integral = values.exp().mean(1).log() + np.log(4.0)
        expected += (log_integral - q(here, data["actions"][i : i + 1])[:, 0].detach()).sum().item() / 2
    assert cql_loss(**inputs)["cql_loss"].item() == pytest.approx(expected, abs=0.03)


def test_brac_loss_is_the_equations():
    (q, q_target), alpha = double_q(), 0.7
    actor, behavior = (TanhGaussianPolicy(STANDARDIZE, 2, 16, True) for _ in range(2))
    data, noise = batch(), torch.randn(2, 32, 2)
    metrics = brac_loss(q, q_target, actor, behavior, data, noise, alpha)

    def kl(observations):
        (m, s), (mb, sb) = ((n.mean, n.stddev) for n in (actor(observations), behavior(observations)))
        return ((sb / s).log() + (s**2 + (m - mb) ** 2) / (2 * sb**2) - 0.5).sum(1)

    here, there = data["observations"], data["next_observations"]
    squashed = [(actor(s).mean + actor(s).stddev * e).tanh() for s, e in zip((here, there), noise)]
    values = q_target(there, squashed[1]).amin(0) - alpha * kl(there)
    y = data["returns"] + data["discounts"] * values
    q_loss = sum(((value - y) ** 2).mean() for value in q(here, data["actions"]))
    actor_loss = (alpha * kl(here) - q(here, squashed[0]).amin(0)).mean()
    torch.testing.assert_close(metrics["q_loss"], q_loss.detach())
    torch.testing.assert_close(metrics["actor_loss"], actor_loss.detach())
    torch.testing.assert_close(metrics["loss"], q_loss + actor_loss)
    torch.testing.assert_close(metrics["kl"], kl(here).mean().detach())


def test_the_kl_of_the_gaussians_is_that_of_the_actions():
    actor, behavior = (TanhGaussianPolicy(STANDARDIZE, 2, 16, True) for _ in range(2))
    observations = torch.randn(1, 4)
    p, q = actor(observations), behavior(observations)
    u = p.sample((200_000,))
    sampled = (actor.log_prob(p, u) - behavior.log_prob(q, u)).mean()
    torch.testing.assert_close(torch.distributions.kl_divergence(p, q).sum(), sampled, atol=0.01, rtol=0.02)


@pytest.mark.parametrize("algorithm", ["iql", "cql", "brac"])
def test_no_gradient_of_the_policys_loss_reaches_q(algorithm):
    """Q at its targets (discounts 0, returns equal to Q) learns nothing by itself: a gradient would be the policy's."""
    data, (q, q_target) = batch() | {"discounts": torch.zeros(32)}, double_q()
    q.members[1].load_state_dict(q.members[0].state_dict())
    data["returns"] = q(data["observations"], data["actions"])[0].detach()
    if algorithm == "iql":
        actor, v = GaussianPolicy(STANDARDIZE, 2, 16, True), mlp(STANDARDIZE, 1, 16, False)
        metrics = iql_loss(q, q_target, v, actor, data, expectile=0.7, beta=1.0)
    elif algorithm == "cql":
        inputs = cql_inputs(batch=data, q=q, q_target=q_target, alpha=0.0)
        actor, metrics = inputs["actor"], cql_loss(**inputs)
    else:
        actor, behavior = (TanhGaussianPolicy(STANDARDIZE, 2, 16, True) for _ in range(2))
        metrics = brac_loss(q, q_target, actor, behavior, data, torch.randn(2, 32, 2), alpha=1.0)
        assert all(p.grad is None for p in behavior.parameters())
    metrics["loss"].backward()
    assert all(p.grad is None for p in q_target.parameters())
    assert all(p.grad.abs().max() < 1e-6 for p in q.parameters())
    assert any(p.grad.abs().max() > 1e-4 for p in actor.parameters())


def test_cqls_regularizer_does_not_move_the_policy():
    inputs, gradients = cql_inputs(), []
    for alpha in (0.0, 2.0):
        inputs["actor"].zero_grad()
        cql_loss(**inputs | {"alpha": alpha})["loss"].backward()
        gradients.append([p.grad.clone() for p in inputs["actor"].parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("algorithm", ["iql", "cql", "brac"])
def test_baselines_find_the_way_out_of_a_known_mdp(corridor, algorithm):
    standardize = Standardize(torch.zeros(4), torch.ones(4))
    q, q_target = (TwinQ(standardize, 1, 64, False) for _ in range(2))
    q_target.load_state_dict(q.state_dict())
    make_actor = GaussianPolicy if algorithm == "iql" else TanhGaussianPolicy
    actor, behavior = (make_actor(standardize, 1, 64, False) for _ in range(2))
    v, log_entropy_weight = mlp(standardize, 1, 64, False), torch.zeros((), requires_grad=True)
    parameters = [*q.parameters(), *v.parameters(), *actor.parameters(), *behavior.parameters(), log_entropy_weight]
    optimizer, scale = torch.optim.Adam(parameters, lr=1e-3), 20.0
    for data in corridor.batches(1500, scale):
        rl = {"batch": data, "q": q, "q_target": q_target, "actor": actor}
        if algorithm == "iql":
            loss = iql_loss(**rl, v=v, expectile=0.9, beta=1.0)["loss"]
        elif algorithm == "cql":
            uniform, noise = 2 * torch.rand(4, 256, 1) - 1, torch.randn(5, 2, 256, 1)
            rl |= {"log_entropy_weight": log_entropy_weight, "uniform": uniform, "noise": noise}
            loss = cql_loss(**rl, alpha=0.1)["loss"]
        else:
            loss = brac_loss(**rl, behavior=behavior, noise=torch.randn(2, 256, 1), alpha=1.0)["loss"]
            loss = loss + behavior_loss(behavior, data["observations"], data["actions"])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for target, online in zip(q_target.parameters(), q.parameters()):
                target.lerp_(online, 0.02)
    states = torch.eye(4)
    actions = actor.act(states, "mean", None).squeeze(1).detach().numpy()
    assert (np.abs(actions - corridor.best) < 0.4).all(), actions
    values = q(states, torch.from_numpy(corridor.best)[:, None]).amin(0).detach() / scale
    assert (values.numpy() > corridor.random_values + 0.05).all()
    np.testing.assert_allclose(values, corridor.optimal_values, atol=0.25)


def run(algorithm, *flags, code=0):
    command = [sys.executable, FOLDER / f"{algorithm}.py", "--device=cpu", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("algorithm", BASELINES)
def test_a_run_has_the_outputs_of_every_algorithm_and_resumes_to_the_same_bits(tmp_path, algorithm):
    small = ["--total-steps=40", "--hidden-dim=16", "--eval-every=20", "--eval-episodes=2", "--final-eval-episodes=3"]
    small += {"brac": ["--bc-steps=20"], "cql": ["--n-actions=2"]}.get(algorithm, [])
    done = run(algorithm, *small, "--checkpoint-every=10", f"--runs-dir={tmp_path / 'a'}")
    (folder,) = (tmp_path / "a").iterdir()
    assert folder.name.startswith(f"fetch-pick-and-place-demo-v0__{algorithm}__1__") and done.stderr == ""
    result = json.loads((folder / "result.json").read_text())
    assert result["algorithm"] == algorithm and result["scores"]["mean"] == result["normalized_scores"]
    assert result["scores"].keys() == {"mean", "sampled"} | ({"softmax"} if algorithm == "cql" else set())
    assert np.load(folder / "eval.npz")["step"].tolist() == [20, 20, 40, 40, 40]

    short = [flag for flag in small if "total" not in flag] + ["--total-steps=30"]
    run(algorithm, *short, "--checkpoint-every=10", f"--runs-dir={tmp_path / 'b'}")
    (resumed,) = (tmp_path / "b").iterdir()
    run(algorithm, "--resume", resumed, "--total-steps=40")
    shutil.copy(resumed / "model.pt", resumed / "vqvae.pt")  # `same` looks for one
    shutil.copy(folder / "model.pt", folder / "vqvae.pt")
    same(folder, resumed)


def test_bad_input_is_one_line():
    for flags, words in (
        (["--total-steps=0"], "--total-steps must be between 1 and inf, it is 0"),
        (["--env-id=hoper"], "unknown --env-id"),
    ):
        done = run("cql", *flags, code=2)
        assert words in done.stderr and len(done.stderr.splitlines()) == 1
    done = run("cql", "--n-actions=0", code=2)
    assert "--n-actions must be between 1" in done.stderr


def test_steps_by_the_data_are_those_of_the_algorithm_files():
    assert [default_steps(transitions) for transitions in (7, 20_000, 41_000, 10**6)] == [3000, 3000, 6000, 50_000]


CASES = [([], 20, 20, 1), ([], 300, 100, 2), ([97, 98, 99], 20, 20, 1), ([50, 51], 300, 75, 1), ([50, 51], 3, 1, 1)]


@pytest.mark.parametrize(("terminals", "limit", "h", "n"), CASES)
def test_gamma_and_n_are_those_of_the_algorithm_files(terminals, limit, h, n):
    """Trajectories of 100 steps; as in tests/test_copied.py, a goal that is left again makes them play."""
    data = {"rewards": torch.ones(1000), "terminals": torch.zeros(1000), "ends": torch.arange(1000) % 100 == 99}
    data |= {"observations": torch.zeros(1000, 3), "next_observations": torch.randn(1000, 3)}
    data["actions"] = torch.zeros(1000, 2)
    data["terminals"][terminals] = 1
    args, task = SimpleNamespace(gamma=None, n_step=None, value_scale=100.0), SimpleNamespace(max_episode_steps=limit)
    transitions, facts = n_step_transitions(args, data, task)
    returns, last, discounts = n_step_returns(data, facts["gamma"], n)
    assert torch.equal(transitions["returns"], facts["reward_scale"] * returns)
    assert torch.equal(transitions["discounts"], discounts)
    assert torch.equal(transitions["next_observations"], data["next_observations"][last])
    rule = re.findall(r"^    (?:play|gamma|largest|scale).*", inspect.getsource(n_step_transitions), re.M)
    sources = [(ROOT / f"saq_{name}.py").read_text().splitlines() for name in ("iql", "cql", "brac")]
    assert len(rule) == 4 and all(set(rule) <= set(source) for source in sources)
    assert (facts["gamma"], facts["n_step"]) == (pytest.approx(1 - 1 / h), n)


@pytest.mark.parametrize("pair", list(itertools.combinations(BASELINES, 2)), ids=" and ".join)
def test_what_baselines_repeat_is_identical(pair):
    a, b = (named_of(FOLDER / f"{name}.py") for name in pair)
    own = {f"Method.{name}" for name in ("total_steps", "weight_decay", "alpha", "acting")}
    assert not [name for name in (a.keys() & b.keys()) - own if a[name] != b[name]]


@pytest.mark.parametrize("name", BASELINES)
def test_arguments_mean_what_they_mean_in_the_discrete_counterpart(name):
    ours, theirs = (named_of(path) for path in (FOLDER / f"{name}.py", ROOT / f"saq_{name}.py"))
    own = {"total_steps", "alpha", "acting", "layer_norm", "expectile", "weight_decay", "bc_steps"}
    for argument in (ours.keys() & theirs.keys()) - {f"Method.{name}" for name in own}:
        assert not argument.startswith("Method.") or ours[argument] == theirs[argument], argument
