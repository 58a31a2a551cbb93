"""CQL(H): conservative Q-learning on soft actor-critic, the continuous counterpart of SAQ-CQL.

    target      y = w r + gamma (1 - terminal) min Q_target(s', a'),  a' ~ pi(.|s')
    Q           sum_i mean (Q_i(s, a) - y)^2 + alpha * mean (lse_i(s) - Q_i(s, a))
                lse_i(s) = log 1/(3n) sum_j exp (Q_i(s, a_j) - log p(a_j)),  about log integral exp Q_i(s, a) da
    policy      mean (eta log pi(a|s) - min Q(s, a)),  a ~ pi(.|s);  eta keeps the entropy of pi at -action_dim

The 3n actions a_j of every state come from the uniform distribution, from pi(.|s) and from pi(.|s'), n each, p their
densities: what SAQ-CQL sums over K codes is estimated here. So is its way of acting, by `--acting softmax`.

Kumar et al., NeurIPS 2020, equation 4 and appendix F. Departs from it where saq_cql.py departs from SAQ-CQL's paper,
each by a flag: n-step targets, gamma and reward factor w by one rule for every task, observations standardized, every
network layer-normalized, weight decay, averaged weights of the policy. Data, evaluation and outputs are saq_cql.py's.

    python benchmark/baselines/cql.py                                # this repository's demo dataset
    python benchmark/baselines/cql.py --env-id hopper-medium-v2      # or another id that `python -m tasks` lists
"""

import copy
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the slow imports without a word

import torch
import torch.nn as nn
import torch.nn.functional as F
from bc import default_steps
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_cql import Auto, Batch, Count, Fraction, Positive, Run, Weight, load_task, mlp, n_step_returns, parse_args
from vqvae import Standardize, ema_weight, follow, gradient_step, minimize


class Method(NamedTuple):
    total_steps: Auto = None  # gradient steps of Q and policy; default twice 0.15 a transition, from 6000 to 100,000
    batch_size: Count = 256  # transitions per gradient step
    hidden_dim: Count = 256  # width of the hidden layers of every network
    learning_rate: Positive = 3e-3  # of every network (the paper: 3e-4)
    weight_decay: Weight = 1e-3  # AdamW's, for Q (the paper: 0)
    standardize: bool = True  # standardize observations with the dataset's mean and deviation (the paper: raw)
    layer_norm: bool = True  # normalize the hidden layers of every network (the paper: no)
    ema_decay: Fraction = 0.9995  # decay of the averaged weights, which act; 0: last weights (the paper)
    gamma: Annotated[float | None, (0, 1)] = None  # discount; default: 1 - 1/h, h: mean trajectory, play: limit / 4
    n_step: Auto = None  # rewards per target; default: h / 50, 1 in play data (the paper: 1)
    value_scale: Weight = 100.0  # largest discounted return of the data after scaling rewards; 0: no scaling
    alpha: Weight = 5.0  # weight of the conservative regularizer
    n_actions: Count = 10  # n of the 3n actions that estimate the regularizer's log-integral in a state
    tau: Fraction = 0.05  # weight of Q in each Polyak update of its target network (the paper: 0.005)
    acting: Literal["mean", "sampled", "softmax"] = "mean"  # the policy's mean, a sample, or the mean of softmax(Q)


class TanhGaussianPolicy(nn.Module):
    """a = tanh(u), u ~ N(mean(s), diag std(s)^2), which fills the action space [-1, 1] (SAC)."""

    def __init__(self, standardize: Standardize, action_dim: int, hidden_dim: int, layer_norm: bool):
        super().__init__()
        self.net = mlp(standardize, 2 * action_dim, hidden_dim, layer_norm)

    def forward(self, observations: torch.Tensor) -> torch.distributions.Normal:
        """The distribution of u (B, action_dim) at observations (B, observation_dim)."""
        mean, log_std = self.net(observations).chunk(2, 1)
        return torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp(), validate_args=False)

    @staticmethod
    def log_prob(normal: torch.distributions.Normal, u: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) (...,) of the actions that u (..., action_dim) stand for: log N(u) - log |da/du|."""
        # log (1 - tanh(u)^2), without cancellation where tanh is near 1
        log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return (normal.log_prob(u) - log_slope).sum(-1)

    def act(self, observations: torch.Tensor, acting: str, generator: torch.Generator) -> torch.Tensor:
        """The action of the mean of u (B, action_dim), or a sample."""
        normal = self(observations)
        u = normal.mean if acting == "mean" else torch.normal(normal.mean, normal.stddev, generator=generator)
        return u.tanh()


class TwinQ(nn.Module):
    """Two Q-functions of observations (B, observation_dim) and actions (B, action_dim): values (2, B)."""

    def __init__(self, standardize: Standardize, action_dim: int, hidden_dim: int, layer_norm: bool):
        super().__init__()
        mean, std = standardize.mean, standardize.std  # actions stay as they are
        both = Standardize(torch.cat([mean, mean.new_zeros(action_dim)]), torch.cat([std, std.new_ones(action_dim)]))
        self.members = nn.ModuleList(mlp(both, 1, hidden_dim, layer_norm) for _ in range(2))

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([observations, actions], 1)
        return torch.cat([q(inputs) for q in self.members], 1).T


@torch.no_grad()
def softmax_mean(
    q: TwinQ, actor: TanhGaussianPolicy, observations: torch.Tensor, generator: torch.Generator, samples: int = 48
) -> torch.Tensor:
    """The mean action (B, action_dim) of the density exp (min Q(s, a)) / Z, which CQL(H) regularizes, at T = 1.

    SAQ-CQL acts by the like and sums over codes; here importance sampling at observations (B, observation_dim)
    estimates it, from as many `samples` of the uniform distribution as of the policy.
    """
    normal = actor(observations)
    draw = {"generator": generator, "device": observations.device}
    uniform = 2.0 * torch.rand(samples, *normal.mean.shape, **draw) - 1.0
    noise = torch.randn(samples, *normal.mean.shape, **draw)
    u = torch.cat([uniform.clamp(-0.99999, 0.99999).atanh(), normal.mean + normal.stddev * noise])
    actions = u.tanh()
    # twice the density of the mixture, whose factor the weights do not see
    uniform_log_prob = normal.mean.new_tensor(-actions.shape[-1] * math.log(2.0))
    log_density = torch.logaddexp(actor.log_prob(normal, u), uniform_log_prob)
    values = q(observations.repeat(len(u), 1), actions.flatten(0, 1)).amin(0).unflatten(0, u.shape[:2])
    return ((values - log_density).softmax(0)[..., None] * actions).sum(0)


def cql_loss(
    q: TwinQ,
    q_target: TwinQ,
    actor: TanhGaussianPolicy,
    log_entropy_weight: torch.Tensor,
    batch: Batch,
    uniform: torch.Tensor,
    noise: torch.Tensor,
    alpha: float,
) -> Batch:
    """Losses of Q, policy and entropy weight as one sum: no gradient of one reaches another's parameters.

    Args:
        log_entropy_weight: scalar, log eta.
        batch: as `n_step_transitions` has it, B rows.
        uniform: (n, B, action_dim) float32, uniform in (-1, 1).
        noise: (1 + n, 2, B, action_dim) float32, standard normal: first of the policy's own loss and of the target,
            then of the regularizer's actions; at s and at s'.

    Returns:
        Scalars: `loss` to minimize, `td_loss`, `cql_loss` and `actor_loss`, `entropy`, and `q_values`, the mean Q of
        the actions taken.
    """
    observations, actions = batch["observations"], batch["actions"]
    normal, next_normal = actor(observations), actor(batch["next_observations"])
    u = normal.mean + normal.stddev * noise[0, 0]
    log_prob = actor.log_prob(normal, u)
    with torch.no_grad():
        next_actions = (next_normal.mean + next_normal.stddev * noise[0, 1]).tanh()
        next_values = q_target(batch["next_observations"], next_actions).amin(0)
        targets = batch["returns"] + batch["discounts"] * next_values
        us = torch.stack([n.mean + n.stddev * e for n, e in zip((normal, next_normal), noise[1:].unbind(1))])
        sampled = torch.cat([uniform, *us.tanh()])
        log_densities = [uniform.new_full(uniform.shape[:2], -actions.shape[1] * math.log(2.0))]
        log_densities = torch.cat(log_densities + [actor.log_prob(d, x) for d, x in zip((normal, next_normal), us)])
    repeated = observations.repeat(len(sampled), 1)
    values = q(torch.cat([observations, repeated]), torch.cat([actions, sampled.flatten(0, 1)]))
    taken, values = values.split([len(actions), len(repeated)], 1)
    log_integral = torch.logsumexp(values.unflatten(1, sampled.shape[:2]) - log_densities, 1) - math.log(len(sampled))
    td_loss = (taken - targets).square().mean(1).sum()
    conservative = (log_integral - taken).mean(1).sum()
    fixed = {name: parameter.detach() for name, parameter in q.named_parameters()}
    eta = log_entropy_weight.exp()
    actor_loss = (eta.detach() * log_prob - functional_call(q, fixed, (observations, u.tanh())).amin(0)).mean()
    entropy = -log_prob.detach().mean()
    loss = td_loss + alpha * conservative + actor_loss + eta * (entropy + actions.shape[1])  # target: -action_dim
    parts = {"td_loss": td_loss.detach(), "cql_loss": conservative.detach(), "actor_loss": actor_loss.detach()}
    return {"loss": loss, **parts, "entropy": entropy, "q_values": taken.detach().mean()}


def n_step_transitions(args, data: Batch, task) -> tuple[Batch, dict[str, float]]:
    """What Q learns from, and facts of it: gamma, n and the scale of rewards by the rule of the algorithm files.

    Returns columns `observations`, `next_observations` (N, observation_dim), `actions` (N, action_dim); `returns`,
    `discounts` (N,), of the n steps from observation to next observation.
    """
    play = ((data["terminals"].diff() < 0) & ~data["ends"][:-1]).any()  # goes on after goals that it met by accident
    limit = task.max_episode_steps
    h = max(limit // 4, 1) if play else min(len(data["ends"]) / data["ends"].sum().item(), limit)
    gamma, n_step = 1 - 1 / h if args.gamma is None else args.gamma, args.n_step or (1 if play else round(h / 50) or 1)
    largest = n_step_returns(data, gamma, limit)[0].abs().max().item()
    scale = args.value_scale / (largest or 1.0) if args.value_scale else 1.0
    returns, last, discounts = n_step_returns(data, gamma, n_step)
    transitions = {"observations": data["observations"], "next_observations": data["next_observations"][last]}
    transitions |= {"actions": data["actions"], "returns": scale * returns, "discounts": discounts}
    return transitions, {"reward_scale": scale, "gamma": gamma, "n_step": n_step}


if __name__ == "__main__":
    args = parse_args(Method)
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, and on a CPU that has it
    torch.set_flush_denormal(True)  # moments of dead units get subnormal, which slows a CPU down
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # more are faster on idle cores, and several times slower on cores that others use
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    data, task = load_task(args)
    data = {name: torch.from_numpy(column).to(device) for name, column in data.items()}
    args.total_steps = args.total_steps or 2 * default_steps(len(data["actions"]))
    standardize, action_dim = Standardize.for_data(data["observations"], args.standardize), data["actions"].shape[1]

    sizes = standardize, action_dim, args.hidden_dim, args.layer_norm
    q, actor = TwinQ(*sizes).to(device), TanhGaussianPolicy(*sizes).to(device)
    q_target, actor_acting = copy.deepcopy(q), copy.deepcopy(actor)
    entropy_weight = nn.ParameterDict({"log": nn.Parameter(torch.zeros((), device=device))})
    no_decay = [*actor.parameters(), *entropy_weight.parameters()]
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    adam = adamw([{"params": q.parameters()}, {"params": no_decay, "weight_decay": 0.0}])
    networks = {"q": q, "q_target": q_target, "actor": actor, "actor_acting": actor_acting}
    run = Run(args, task, nn.ModuleDict(networks | {"entropy_weight": entropy_weight}), [adam], generator)

    def policy(observations: torch.Tensor, acting: str, generator: torch.Generator) -> torch.Tensor:
        if acting == "softmax":
            return softmax_mean(q, actor_acting, observations, generator)
        return actor_acting.act(observations, acting, generator)

    transitions, facts = n_step_transitions(args, data, task)
    draw, per_row = {"generator": generator, "device": device}, (args.batch_size, action_dim)
    uniform = partial(torch.rand, args.n_actions, *per_row, **draw)
    noise = partial(torch.randn, 1 + args.n_actions, 2, *per_row, **draw)

    @gradient_step(adam, generator, len(data["actions"]), args.batch_size, args.compile, uniform, noise)
    def cql_step(rows, uniform, noise, ema) -> Batch:
        batch = {name: column[rows] for name, column in transitions.items()}
        weight = entropy_weight["log"]
        metrics = cql_loss(q, q_target, actor, weight, batch, 2.0 * uniform - 1.0, noise, args.alpha)
        minimize(metrics["loss"], adam)
        follow(q_target, q, args.tau)
        follow(actor_acting, actor, ema)
        return metrics

    for step in run.steps("rl", args.total_steps, "losses/"):
        run.metrics = cql_step(ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.acting, args.eval_episodes, step)

    run.finish(policy, ("mean", "sampled", "softmax"), {"q": q, "actor": actor_acting}, facts)
