"""CQL(H): conservative Q-learning on soft actor-critic, the continuous counterpart of SAQ-CQL.

    target      y = w r + gamma (1 - terminal) min Q_target(s', a'),  a' ~ pi(.|s')
    Q           sum_i mean (Q_i(s, a) - y)^2 + alpha * mean (lse_i(s) - Q_i(s, a))
                lse_i(s) = log 1/(3n) sum_j exp (Q_i(s, a_j) - log p(a_j)),  about log integral exp Q_i(s, a) da
    policy      mean (eta log pi(a|s) - min Q(s, a)),  a ~ pi(.|s);  eta keeps the entropy of pi at -action_dim

The 3n actions a_j of every state come from the uniform distribution, from pi(.|s) and from pi(.|s'), n each, p their
densities: what SAQ-CQL sums over K codes is estimated here. So is its way of acting, by `--acting softmax`.

Kumar et al., NeurIPS 2020, equation 4 and appendix F. Departs from it where saq_cql.py departs from SAQ-CQL's paper,
each by a flag: n-step targets, gamma and w by one rule for every task, observations standardized, Q layer-normalized,
an average of the policy's weights acts. Data, evaluation and outputs are those of saq_cql.py.

    python benchmark/baselines/cql.py                                # this repository's demo dataset
    python benchmark/baselines/cql.py --env-id hopper-medium-v2      # D4RL, robomimic, Minari as in saq_cql.py
"""

import copy
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import gymnasium as gym
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from saq_cql import (
    Run,
    ema_weight,
    follow,
    largest_return,
    load_dataset,
    make_env,
    make_standardize,
    mlp,
    n_step_returns,
    parse_args,
    time_scale,
)
from vqvae import Standardize


@dataclass
class Args:
    env_id: str = "fetch-pick-and-place-demo-v0"
    """dataset and environment: a D4RL, robomimic or Minari id, or the demo in this repository"""
    dataset_path: str | None = None
    """HDF5 file in D4RL's or robomimic's layout in place of the id's own; robomimic's brings its environment"""
    dataset_filter: str | None = None
    """robomimic files: filter key of the demonstrations to use, such as train; default all"""
    observation_keys: list[str] | None = None
    """robomimic files: observations to use; default end effector and gripper of each arm, and object (the paper)"""
    seed: int = 1
    """seed of networks, batches and evaluation episodes"""
    total_steps: int = 6000
    """gradient steps of Q and policy"""
    batch_size: int = 256
    """transitions per gradient step, in every phase"""
    hidden_dim: int = 256
    """width of the hidden layers of every network"""
    standardize: bool = True
    """standardize observations with the dataset's mean and deviation (the paper: raw)"""
    layer_norm: bool = True
    """normalize the hidden layers of every network (the paper: no)"""
    learning_rate: float = 3e-3
    """learning rate of every network (the paper: 3e-4)"""
    weight_decay: float = 1e-3
    """AdamW's weight decay for Q"""
    gamma: float | None = None
    """discount factor; default 1 - 1 / h, of the data's mean episode of h steps (the paper: 0.99)"""
    n_step: int | None = None
    """rewards summed before a target bootstraps; default h / 50, at least 1 (the paper: 1)"""
    alpha: float = 5.0
    """weight of the conservative regularizer"""
    n_actions: int = 10
    """n of the 3n actions that estimate the regularizer's log-integral in a state"""
    tau: float = 0.05
    """weight of Q in each Polyak update of its target network (the paper: 0.005)"""
    value_scale: float = 100.0
    """scale rewards so that the dataset's largest discounted return is this; 0: rewards as they are (the paper)"""
    ema_decay: float = 0.9995
    """decay, in the long run, of the moving averages of the weights that act; 0: the last weights (the paper)"""
    acting: Literal["mean", "sampled", "softmax"] = "mean"
    """the policy's mean, a sample, or the mean of softmax(Q), as SAQ-CQL acts; after the last step all"""
    eval_every: int = 10_000
    """gradient steps between evaluations"""
    eval_episodes: int = 10
    """episodes per evaluation during training"""
    final_eval_episodes: int | None = None
    """episodes of the evaluation after the last step; default 100, robosuite 50"""
    checkpoint_every: int = 10_000
    """gradient steps between checkpoints"""
    runs_dir: str = "runs"
    """folder in which the run's folder is made"""
    resume: str | None = None
    """folder of an interrupted run to continue; its arguments hold, but for those given again"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """device of networks and dataset; auto: cuda where there is one"""
    compile: bool = False
    """compile the losses with torch.compile"""
    track: bool = False
    """log to Weights & Biases too"""
    capture_video: bool = False
    """write video.gif of the final policy"""


class TanhGaussianPolicy(nn.Module):
    """a = center + half_range * tanh(u), u ~ N(mean(s), diag std(s)^2), which fills the action space (SAC).

    Args:
        standardize: of observations.
        space: the environment's action space.
        hidden_dim: width of the two hidden layers.
        layer_norm: normalize them.
    """

    def __init__(self, standardize: Standardize, space: gym.spaces.Box, hidden_dim: int, layer_norm: bool):
        super().__init__()
        self.net = mlp(standardize, 2 * space.shape[0], hidden_dim, layer_norm)
        self.register_buffer("center", torch.as_tensor((space.high + space.low) / 2, dtype=torch.float32))
        self.register_buffer("half_range", torch.as_tensor((space.high - space.low) / 2, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.distributions.Normal:
        """The distribution of u (B, action_dim) at observations (B, observation_dim)."""
        mean, log_std = self.net(observations).chunk(2, 1)
        return torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp(), validate_args=False)

    def squash(self, u: torch.Tensor) -> torch.Tensor:
        """Actions (..., action_dim) of u."""
        return self.center + self.half_range * u.tanh()

    def log_prob(self, normal: torch.distributions.Normal, u: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) (...,) of the actions that u (..., action_dim) stand for: log N(u) - log |da/du|."""
        # log (1 - tanh(u)^2), without cancellation where tanh is near 1
        log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return (normal.log_prob(u) - log_slope - self.half_range.log()).sum(-1)

    def uniform_log_prob(self) -> torch.Tensor:
        """log density () of the uniform distribution over the action space."""
        return -(2.0 * self.half_range).log().sum()

    def act(self, observations: torch.Tensor, acting: str, generator: torch.Generator) -> torch.Tensor:
        """The action of the mean of u (B, action_dim), or a sample."""
        normal = self(observations)
        if acting == "mean":
            return self.squash(normal.mean)
        return self.squash(torch.normal(normal.mean, normal.stddev, generator=generator))


class TwinQ(nn.Module):
    """Two Q-functions of observations (B, observation_dim) and actions (B, action_dim): values (2, B)."""

    def __init__(self, standardize: Standardize, action_dim: int, hidden_dim: int, layer_norm: bool):
        super().__init__()
        mean, std = standardize.mean, standardize.std
        both = Standardize(
            torch.cat([mean, mean.new_zeros(action_dim)]), torch.cat([std, std.new_ones(action_dim)])
        )  # actions stay as they are
        self.members = nn.ModuleList(mlp(both, 1, hidden_dim, layer_norm) for _ in range(2))

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([observations, actions], 1)
        return torch.cat([q(inputs) for q in self.members], 1).T


@torch.no_grad()
def softmax_mean(
    q: TwinQ, actor: TanhGaussianPolicy, observations: torch.Tensor, generator: torch.Generator, samples: int = 48
) -> torch.Tensor:
    """The mean action (B, action_dim) of the density exp (min Q(s, a)) / Z, which CQL(H) regularizes, at T = 1.

    SAQ-CQL acts by the like and sums over codes; here importance sampling estimates it, from as many `samples` of the
    uniform distribution as of the policy.

    Args:
        observations: (B, observation_dim) float32.
        generator: draws the samples.
    """
    normal = actor(observations)
    draw = {"generator": generator, "device": observations.device}
    uniform = 2.0 * torch.rand(samples, *normal.mean.shape, **draw) - 1.0
    noise = torch.randn(samples, *normal.mean.shape, **draw)
    u = torch.cat([uniform.clamp(-0.99999, 0.99999).atanh(), normal.mean + normal.stddev * noise])
    actions = actor.squash(u)
    # twice the density of the mixture, whose factor the weights do not see
    log_density = torch.logaddexp(actor.log_prob(normal, u), actor.uniform_log_prob())
    values = q(observations.repeat(len(u), 1), actions.flatten(0, 1)).amin(0).unflatten(0, u.shape[:2])
    return ((values - log_density).softmax(0)[..., None] * actions).sum(0)


def cql_loss(
    q: TwinQ,
    q_target: TwinQ,
    actor: TanhGaussianPolicy,
    log_entropy_weight: torch.Tensor,
    observations: torch.Tensor,
    actions: torch.Tensor,
    rewards: torch.Tensor,
    next_observations: torch.Tensor,
    discounts: torch.Tensor,
    uniform: torch.Tensor,
    noise: torch.Tensor,
    alpha: float,
) -> dict[str, torch.Tensor]:
    """Losses of Q, policy and entropy weight as one sum: no gradient of one reaches another's parameters.

    Args:
        log_entropy_weight: scalar, log eta.
        observations, next_observations: (B, observation_dim) float32.
        actions: (B, action_dim) float32.
        rewards, discounts: (B,) float32, of the n steps from `observations` to `next_observations`.
        uniform: (n, B, action_dim) float32, uniform in (-1, 1).
        noise: (1 + n, 2, B, action_dim) float32, standard normal: first of the policy's own loss and of the target,
            then of the regularizer's actions; at s and at s'.

    Returns:
        Scalars: `loss` to minimize, `td_loss`, `cql_loss` and `actor_loss`, `entropy`, and `q_values`, the mean Q of
        the actions taken.
    """
    normal, next_normal = actor(observations), actor(next_observations)
    u = normal.mean + normal.stddev * noise[0, 0]
    chosen, log_prob = actor.squash(u), actor.log_prob(normal, u)
    with torch.no_grad():
        next_actions = actor.squash(next_normal.mean + next_normal.stddev * noise[0, 1])
        targets = rewards + discounts * q_target(next_observations, next_actions).amin(0)
        us = torch.stack([n.mean + n.stddev * e for n, e in zip((normal, next_normal), noise[1:].unbind(1))])
        log_densities = torch.stack([actor.log_prob(n, u) for n, u in zip((normal, next_normal), us)])
        sampled = torch.cat([actor.center + actor.half_range * uniform, *actor.squash(us)])
        log_densities = torch.cat([actor.uniform_log_prob().expand(uniform.shape[:2]), *log_densities])
    repeated = observations.repeat(len(sampled), 1)
    values = q(torch.cat([observations, repeated]), torch.cat([actions, sampled.flatten(0, 1)]))
    taken, values = values.split([len(actions), len(repeated)], 1)
    log_integral = torch.logsumexp(values.unflatten(1, sampled.shape[:2]) - log_densities, 1) - math.log(len(sampled))
    td_loss = (taken - targets).square().mean(1).sum()
    conservative = (log_integral - taken).mean(1).sum()
    fixed = {name: parameter.detach() for name, parameter in q.named_parameters()}
    eta = log_entropy_weight.exp()
    actor_loss = (eta.detach() * log_prob - functional_call(q, fixed, (observations, chosen)).amin(0)).mean()
    entropy = -log_prob.detach().mean()
    entropy_loss = eta * (entropy + actions.shape[1])  # the target entropy is -action_dim
    return {
        "loss": td_loss + alpha * conservative + actor_loss + entropy_loss,
        "td_loss": td_loss.detach(),
        "cql_loss": conservative.detach(),
        "actor_loss": actor_loss.detach(),
        "entropy": entropy,
        "q_values": taken.detach().mean(),
    }


if __name__ == "__main__":
    args, task = parse_args(Args, positive=("n_actions", "n_step"))
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    env = make_env(task)
    dataset = load_dataset(task, env, device)
    standardize = make_standardize(args, dataset)

    action_dim = dataset.actions.shape[1]
    q = TwinQ(standardize, action_dim, args.hidden_dim, args.layer_norm).to(device)
    actor = TanhGaussianPolicy(standardize, env.action_space, args.hidden_dim, args.layer_norm).to(device)
    q_target, actor_acting = copy.deepcopy(q), copy.deepcopy(actor)
    entropy_weight = nn.ParameterDict({"log": nn.Parameter(torch.zeros((), device=device))})
    no_decay = [*actor.parameters(), *entropy_weight.parameters()]
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    optimizer = adamw([{"params": q.parameters()}, {"params": no_decay, "weight_decay": 0.0}])
    modules = {
        "q": q,
        "q_target": q_target,
        "actor": actor,
        "actor_acting": actor_acting,
        "entropy_weight": entropy_weight,
    }
    run = Run(args, task, modules | {"generator": generator, "adam": optimizer})
    if args.compile:
        cql_loss = torch.compile(cql_loss, mode="reduce-overhead" if device.type == "cuda" else None)

    def policy(observations: torch.Tensor, generator: torch.Generator, acting: str = args.acting) -> torch.Tensor:
        if acting == "softmax":
            return softmax_mean(q, actor_acting, observations, generator)
        return actor_acting.act(observations, acting, generator)

    gamma, n_step = time_scale(args, dataset)
    scale = args.value_scale / (largest_return(dataset, gamma) or 1.0) if args.value_scale else 1.0
    returns, next_rows, discounts = n_step_returns(dataset, scale * dataset.rewards, gamma, n_step)
    draw = {"generator": generator, "device": device}
    for step in run.steps("rl", args.total_steps, "losses/"):
        picks = torch.randint(len(dataset.transitions), (args.batch_size,), **draw)
        rows = dataset.transitions[picks]
        run.metrics = cql_loss(
            q,
            q_target,
            actor,
            entropy_weight["log"],
            dataset.observations[rows],
            dataset.actions[rows],
            returns[picks],
            dataset.observations[next_rows[picks]],
            discounts[picks],
            2.0 * torch.rand(args.n_actions, args.batch_size, action_dim, **draw) - 1.0,
            torch.randn(1 + args.n_actions, 2, args.batch_size, action_dim, **draw),
            args.alpha,
        )
        optimizer.zero_grad()
        run.metrics["loss"].backward()
        optimizer.step()
        follow(q_target, q, args.tau)
        follow(actor_acting, actor, ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.eval_episodes, step, device)

    run.finish("CQL", policy, dataset, {"q": q, "actor": actor_acting}, reward_scale=scale, gamma=gamma, n_step=n_step)
