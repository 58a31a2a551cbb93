"""What main makes of a small dataset: defaults, codes, targets, networks, averages, policy, result."""

import inspect
import json
import math
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known import load_network, stand_in_task

import saq_bc
import saq_brac
import saq_cql
import saq_iql
from vqvae import VQVAE, train_vqvae

WITH_Q = {"saq_iql": saq_iql, "saq_cql": saq_cql, "saq_brac": saq_brac}
ALL = {"saq_bc": saq_bc, **WITH_Q}


def dataset() -> dict[str, torch.Tensor]:
    """Three trajectories of 200 steps; the second ends in a terminal state."""
    rng, rows = np.random.default_rng(0), np.arange(600)
    data = {
        "observations": rng.normal(size=(600, 3)),
        "next_observations": rng.normal(size=(600, 3)),
        "actions": rng.uniform(-0.9, 0.9, (600, 2)),
        "rewards": rng.normal(size=600),
        "terminals": rows == 399,
    }
    data = {name: torch.from_numpy(column.astype(np.float32)) for name, column in data.items()}
    data["ends"] = torch.from_numpy(rows % 200 == 199)
    return data


@pytest.fixture
def story(tmp_path, monkeypatch):
    """story(algorithm, **flags): run main for a few steps and return what it left."""
    data = dataset()

    def run(algorithm, **flags):
        module = ALL[algorithm]
        evaluations = []

        def evaluate(policy, episodes, seed, video):
            evaluations.append((episodes, seed, policy(data["observations"].numpy())))
            scores = np.arange(float(episodes))
            return {"seeds": scores, "returns": scores, "lengths": scores, "scores": scores}

        monkeypatch.setattr(module, "load_task", lambda args, device: (stand_in_task(evaluate), data))
        folder = tmp_path / f"{algorithm}-{len(list(tmp_path.iterdir()))}"
        usual = {"vqvae_steps": 3, "bc_steps": 3, "hidden_dim": 16, "device": "cpu", "run_dir": str(folder)}
        if algorithm != "saq_bc":
            usual["rl_steps"] = 4
        result = module.main(module.Args(**(usual | flags)))
        return SimpleNamespace(
            data=data,
            folder=folder,
            result=result,
            evaluations=evaluations,
            vqvae=VQVAE.load(folder / "vqvae.pt"),
            weights=torch.load(folder / "checkpoint.pt", weights_only=True)["modules"],
        )

    return run


def weights_of(it, name):
    """Weights, by name, of a network in the checkpoint."""
    weights = {key: value for key, value in it.weights.items() if key.startswith(f"{name}.")}
    for key in ("vqvae.soft_code_scale", "vqvae_learner.soft_code_scale"):  # set in the first when training ends
        weights.pop(key, None)
    return weights


def same(a, b):
    """Whether two networks' weights are equal, one by one."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a.values(), b.values()))


# ---- Defaults that follow from the data ------------------------------------------------------------------------------


def filled_in(module, data, **args):
    task = stand_in_task(None, max_episode_steps=300, eval_episodes=70)
    return module.fill_in_defaults(module.Args(**args), data, task)


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize(("transitions", "steps"), [(600, 3000), (41_000, 6000), (400_000, 50_000)])
def test_steps_follow_from_the_number_of_transitions(algorithm, transitions, steps):
    data = {
        "actions": torch.zeros(transitions, 1),
        "terminals": torch.zeros(transitions),
        "ends": torch.arange(transitions) % 200 == 199,
    }
    args = filled_in(ALL[algorithm], data)
    assert (args.vqvae_steps, args.bc_steps, args.final_eval_episodes) == (steps, steps, 70)
    if algorithm != "saq_bc":
        assert args.rl_steps == steps
    args = filled_in(ALL[algorithm], data, vqvae_steps=7, bc_steps=0, final_eval_episodes=5)
    assert (args.vqvae_steps, args.bc_steps, args.final_eval_episodes) == (7, 0, 5)


CASES = {
    "trajectories": (200, [], 200, 4),
    "trajectories longer than the step limit": (600, [], 300, 6),
    "success that lasts to the end": (200, [197, 198, 199], 200, 4),
    "play data, where success is left again": (200, [50, 51], 75, 1),
    "single transitions": (1, [50], 300, 1),
}


@pytest.mark.parametrize(("length", "terminal_rows", "horizon", "n_step"), CASES.values(), ids=CASES)
def test_gamma_and_n_step_follow_from_the_trajectories(length, terminal_rows, horizon, n_step):
    terminals = torch.zeros(600)
    terminals[terminal_rows] = 1.0
    data = {"actions": torch.zeros(600, 1), "terminals": terminals, "ends": torch.arange(600) % length == length - 1}
    args = filled_in(saq_iql, data)
    assert (args.gamma, args.n_step) == (pytest.approx(1 - 1 / horizon), n_step)
    args = filled_in(saq_iql, data, gamma=0.0, n_step=9)
    assert (args.gamma, args.n_step) == (0.0, 9)


def test_rewards_are_scaled_by_the_largest_return():
    data, task = dataset(), stand_in_task(None)
    args = saq_iql.Args(gamma=0.9, value_scale=50.0)
    returns, total = [], 0.0
    for reward, is_end in zip(reversed(data["rewards"].tolist()), reversed(data["ends"].tolist())):
        total = reward + 0.9 * total * (not is_end)
        returns.append(abs(total))
    assert saq_iql.reward_scale(args, data, task) == pytest.approx(50 / max(returns), rel=1e-4)
    assert saq_iql.reward_scale(saq_iql.Args(gamma=0.9, value_scale=0.0), data, task) == 1.0
    no_rewards = data | {"rewards": torch.zeros(600)}
    assert saq_iql.reward_scale(args, no_rewards, task) == 50.0
    single = data | {"ends": torch.ones(600, dtype=torch.bool), "rewards": torch.ones(600)}
    assert saq_iql.reward_scale(args, single, task) == pytest.approx(50 / 300)


@pytest.mark.parametrize("flag", [{"gamma": 1.5}, {"gamma": math.nan}, {"batch_size": 0}, {"expectile": -0.1}])
def test_arguments_out_of_range_are_refused(flag):
    (name,) = flag
    with pytest.raises(ValueError, match=f"{name} must be between"):
        saq_iql.Args(**flag)


# ---- Codes, targets, networks ----------------------------------------------------------------------------------------


LOSSES = {"saq_iql": "iql_loss", "saq_cql": "cql_loss", "saq_brac": "td_loss"}
TARGETS = [("saq_iql", {}), ("saq_cql", {}), ("saq_cql", {"backup": "greedy"}), ("saq_brac", {"alpha": 2.0})]


@pytest.mark.parametrize(("algorithm", "flags"), TARGETS)
def test_q_learns_on_soft_codes_and_scaled_n_step_targets(story, monkeypatch, algorithm, flags):
    """What the loss gets at the second step follows from the data and the networks that a run of one step saves."""
    module, name = WITH_Q[algorithm], LOSSES[algorithm]
    first = story(algorithm, rl_steps=1, ema_decay=0.0, **flags)  # so that q_ema, in model.pt, is q
    signature = inspect.signature(getattr(module, name))
    loss = Mock(wraps=getattr(module, name))
    monkeypatch.setattr(module, name, loss)
    it = story(algorithm, rl_steps=2, ema_decay=0.0, **flags)
    batch = signature.bind(*loss.call_args.args, **loss.call_args.kwargs).arguments

    soft = it.vqvae.soft_codes(it.data["observations"], it.data["actions"])
    idx = torch.cdist(batch["p"], soft).argmin(1)  # the rows drawn, recognized by their probabilities
    assert torch.equal(batch["p"], soft[idx])
    assert len(idx) == 256

    gamma, n_step = it.result["gamma"], it.result["n_step"]
    assert (gamma, n_step) == (pytest.approx(1 - 1 / 200), 4)
    rewards, ends = it.data["rewards"].double().numpy(), it.data["ends"].numpy()
    stops = np.array([row + ends[row:].argmax() for row in range(600)])

    def discounted(first, last):
        return (gamma ** np.arange(last + 1 - first) * rewards[first : last + 1]).sum()

    scale = it.result["reward_scale"]
    assert scale == pytest.approx(100 / max(abs(discounted(row, stops[row])) for row in range(600)), rel=1e-4)
    last = np.minimum(np.arange(600) + n_step - 1, stops)
    returns = torch.tensor([scale * discounted(row, last[row]) for row in idx.tolist()])
    discounts = torch.from_numpy(np.where(last == 399, 0, gamma ** (last + 1 - np.arange(600))))[idx]

    def outputs(name, observations):
        return load_network(module, first.folder, name)(observations)

    obs, next_obs = it.data["observations"][idx], it.data["next_observations"][last][idx]
    next_q = outputs("q_target", next_obs)
    assert not torch.equal(next_q, outputs("q", next_obs))
    if algorithm == "saq_iql":
        next_values = outputs("v", next_obs).squeeze(1)
        torch.testing.assert_close(batch["q_target"], outputs("q_target", obs))
    elif algorithm == "saq_brac":
        next_values = 2 * (next_q / 2 + outputs("behavior", next_obs).log_softmax(1)).logsumexp(1)
    else:
        torch.testing.assert_close(batch["log_pi_b"], outputs("behavior", obs).log_softmax(1))
        if flags:  # greedy: the code with the largest Q, valued by the target network
            next_values = next_q[torch.arange(256), outputs("q", next_obs).argmax(1)]
        else:
            next_values = ((next_q + outputs("behavior", next_obs)).softmax(1) * next_q).sum(1)
    expected = returns + discounts * next_values
    torch.testing.assert_close(batch["td_target"].double(), expected, rtol=1e-3, atol=1e-3)
    assert not batch["td_target"].requires_grad


def test_hard_codes_are_one_hot(story, monkeypatch):
    loss = Mock(wraps=saq_iql.iql_loss)
    monkeypatch.setattr(saq_iql, "iql_loss", loss)
    it = story("saq_iql", soft_codes=False)
    p = loss.call_args.args[4]
    assert torch.equal(p, F.one_hot(p.argmax(1), 64).float())
    codes = it.vqvae.encode(it.data["observations"], it.data["actions"])
    assert set(p.argmax(1).tolist()) <= set(codes.tolist())


@pytest.mark.parametrize("algorithm", WITH_Q)
def test_target_and_averages_follow_as_the_flags_say(story, algorithm):
    if algorithm == "saq_cql":
        copied, behind = {"target_period": 4}, {"target_period": 3}
    else:
        copied, behind = {"tau": 1.0}, {"tau": 0.5}
    pairs = [("vqvae", "vqvae_learner"), ("behavior_ema", "behavior"), ("q_ema", "q"), ("q_target", "q")]
    it = story(algorithm, ema_decay=0.0, **copied)
    assert all(same(weights_of(it, a), weights_of(it, b)) for a, b in pairs)
    it = story(algorithm, **behind)
    assert not any(same(weights_of(it, a), weights_of(it, b)) for a, b in pairs)
    model = torch.load(it.folder / "model.pt", weights_only=True)
    assert same(model["q"], weights_of(it, "q_ema"))
    assert same(model["behavior"], weights_of(it, "behavior_ema"))
    assert torch.equal(it.vqvae.codebook, it.weights["vqvae.codebook"])


def test_without_its_steps_the_behavior_policy_of_saq_cql_is_uniform(story):
    it = story("saq_cql", bc_steps=0)
    log_pi_b = saq_cql.log_probs(load_network(saq_cql, it.folder, "behavior"), it.data["observations"])
    torch.testing.assert_close(log_pi_b, torch.full((600, 64), -math.log(64)))


def test_weight_decay_does_not_reach_v(story):
    usual, decayed = story("saq_iql", rl_steps=1), story("saq_iql", rl_steps=1, weight_decay=9.0)
    assert same(weights_of(usual, "v"), weights_of(decayed, "v"))


def test_a_given_vqvae_is_used_as_it_is(story, tmp_path):
    data = dataset()
    vqvae = VQVAE.for_data(data["observations"], data["actions"], hidden_dim=16)
    train_vqvae(vqvae, data["observations"], data["actions"], 5)
    vqvae.save(tmp_path / "other.pt")
    it = story("saq_iql", vqvae_path=str(tmp_path / "other.pt"), vqvae_steps=50)
    assert same(it.vqvae.state_dict(), vqvae.state_dict())


FLAGS = {
    "seed": (2, "vqvae behavior q"),
    "hidden_dim": (8, "vqvae behavior q"),
    "layer_norm": (False, "vqvae behavior q"),
    "standardize": (False, "vqvae behavior q"),
    "learning_rate": (1e-3, "vqvae behavior q"),
    "batch_size": (8, "vqvae behavior q"),
    "codebook_size": (8, "vqvae behavior q"),
    "state_conditioned": (False, "vqvae behavior q"),
    "vqvae_steps": (4, "vqvae behavior q"),
    "dead_code_reset_every": (0, "vqvae behavior q"),
    "soft_codes": (False, "behavior q"),
    "weight_decay": (9.0, "behavior q"),
    "bc_steps": (4, "behavior q"),
    "rl_steps": (5, "q"),
    "gamma": (0.5, "q"),
    "n_step": (1, "q"),
    "value_scale": (1.0, "q"),
    "expectile": (0.9, "q"),
    "alpha": (1.0, "q"),
    "backup": ("greedy", "q"),
    "target_period": (1, "q"),
    "tau": (1.0, "q"),
}


@pytest.mark.parametrize("algorithm", ALL)
def test_each_flag_reaches_the_networks(story, algorithm):
    usual = story(algorithm)
    for flag, (value, networks) in FLAGS.items():
        if not hasattr(ALL[algorithm].Args, flag):
            continue
        other = story(algorithm, **{flag: value})
        for name in networks.split():
            if weights_of(usual, name):  # SAQ-BC has no q
                assert not same(weights_of(usual, name), weights_of(other, name)), f"{flag} does not reach {name}"


# ---- Policy and result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_mode", ["mean", "greedy"])
@pytest.mark.parametrize("algorithm", ALL)
def test_the_policy_acts_with_the_saved_networks(story, algorithm, action_mode):
    own = {"saq_iql": {"temperature": 0.05, "min_log_pi_b": -4.0}, "saq_brac": {"alpha": 0.05}}
    it = story(algorithm, action_mode=action_mode, **own.get(algorithm, {}))
    observations, module = it.data["observations"], ALL[algorithm]
    logits = load_network(module, it.folder, "behavior")(observations).log_softmax(1)
    if algorithm == "saq_iql":
        logits = logits.clamp(min=-4.0)
    if algorithm != "saq_bc":
        factor = 1.0 if algorithm == "saq_cql" else 0.05
        logits = logits + load_network(module, it.folder, "q")(observations) / factor
    actions = it.evaluations[-1][2]
    np.testing.assert_allclose(actions, it.vqvae.act(observations, logits, action_mode), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALL)
def test_main_evaluates_with_the_seed_and_returns_the_result(story, algorithm):
    steps = {"bc_steps": 4} if algorithm == "saq_bc" else {"rl_steps": 4}
    it = story(algorithm, seed=7, eval_every=2, eval_episodes=3, final_eval_episodes=5, **steps)
    assert [evaluation[:2] for evaluation in it.evaluations] == [(3, 7), (5, 7)]
    assert it.result == json.loads((it.folder / "result.json").read_text())
    expected = {
        "env_id": "stand-in",
        "algorithm": algorithm,
        "seed": 7,
        "normalized_score": 2.0,
        "normalized_scores": [0.0, 1.0, 2.0, 3.0, 4.0],
        "dataset_normalized_return": 15.0,
        "total_steps": 4,
    }
    assert expected.items() <= it.result.items()
    assert it.result["vqvae"]["codes_used"] > 1
