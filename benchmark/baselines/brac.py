"""BRAC with value penalty: behavior-regularized actor-critic, the continuous counterpart of SAQ-BRAC.

    behavior    mean -log pi_b(a|s),  before Q-learning
    target      y = w r + gamma (1 - terminal) (min Q_target(s', a') - alpha KL(pi(.|s') || pi_b(.|s'))),  a' ~ pi(.|s')
    Q           mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    policy      mean (alpha KL(pi(.|s) || pi_b(.|s)) - min Q(s, a)),  a ~ pi(.|s)

pi and pi_b are Gaussians behind the same tanh, a bijection, so that their KL is that of the Gaussians and has a closed
form, where BRAC (Wu et al., 2019, section 3) estimates it from samples. pi starts as pi_b. Departs from BRAC where
saq_brac.py departs from the paper, each by a flag: n-step targets, gamma and w by one rule for every task, observations
standardized, Q layer-normalized, an average of the weights acts. Data, evaluation and outputs are those of saq_brac.py.

    python benchmark/baselines/brac.py                                # this repository's demo dataset
    python benchmark/baselines/brac.py --env-id hopper-medium-v2      # D4RL, robomimic, Minari as in saq_brac.py
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

from saq_brac import (
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
    bc_steps: int = 3000
    """gradient steps of the behavior policy"""
    total_steps: int = 3000
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
    """AdamW's weight decay for Q and behavior policy"""
    gamma: float | None = None
    """discount factor; default 1 - 1 / h, of the data's mean episode of h steps (the paper: 0.99)"""
    n_step: int | None = None
    """rewards summed before a target bootstraps; default h / 50, at least 1 (the paper: 1)"""
    alpha: float = 3.0
    """weight of the KL from the behavior policy, in the policy's loss and in the target"""
    tau: float = 0.05
    """weight of Q in each Polyak update of its target network (the paper: 0.005)"""
    value_scale: float = 100.0
    """scale rewards so that the dataset's largest discounted return is this; 0: rewards as they are (the paper)"""
    ema_decay: float = 0.9995
    """decay, in the long run, of the moving averages of the weights that act; 0: the last weights (the paper)"""
    acting: Literal["mean", "sampled"] = "mean"
    """the policy's mean, or a sample; after the last step both"""
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


def behavior_loss(
    behavior: TanhGaussianPolicy, observations: torch.Tensor, actions: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Negative log-likelihood, in nats, of the dataset's actions (B, action_dim) at (B, observation_dim)."""
    u = ((actions - behavior.center) / behavior.half_range).atanh()
    return {"loss": -behavior.log_prob(behavior(observations), u).mean()}


def brac_loss(
    q: TwinQ,
    q_target: TwinQ,
    actor: TanhGaussianPolicy,
    behavior: TanhGaussianPolicy,
    observations: torch.Tensor,
    actions: torch.Tensor,
    rewards: torch.Tensor,
    next_observations: torch.Tensor,
    discounts: torch.Tensor,
    noise: torch.Tensor,
    alpha: float,
) -> dict[str, torch.Tensor]:
    """Losses of Q and policy (Wu et al., 2019, section 3) as one sum: neither's gradient reaches the other's weights.

    Args:
        observations, next_observations: (B, observation_dim) float32.
        actions: (B, action_dim) float32.
        rewards, discounts: (B,) float32, of the n steps from `observations` to `next_observations`.
        noise: (2, B, action_dim) float32, standard normal: of the actions at s and at s'.

    Returns:
        Scalars: `loss` to minimize, its parts `q_loss` and `actor_loss`, the mean `kl` at s, and `q_values`, the mean Q
        of the actions taken.
    """
    with torch.no_grad():
        normal = actor(next_observations)
        kl = torch.distributions.kl_divergence(normal, behavior(next_observations)).sum(1)
        next_actions = actor.squash(normal.mean + normal.stddev * noise[1])
        next_values = q_target(next_observations, next_actions).amin(0) - alpha * kl
        targets = rewards + discounts * next_values
        behavior_normal = behavior(observations)
    taken = q(observations, actions)
    q_loss = (taken - targets).square().mean(1).sum()
    normal = actor(observations)
    kl = torch.distributions.kl_divergence(normal, behavior_normal).sum(1)
    fixed = {name: parameter.detach() for name, parameter in q.named_parameters()}
    chosen = actor.squash(normal.mean + normal.stddev * noise[0])
    actor_loss = (alpha * kl - functional_call(q, fixed, (observations, chosen)).amin(0)).mean()
    return {
        "loss": q_loss + actor_loss,
        "q_loss": q_loss.detach(),
        "actor_loss": actor_loss.detach(),
        "kl": kl.detach().mean(),
        "q_values": taken.detach().mean(),
    }


if __name__ == "__main__":
    args, task = parse_args(Args, positive=("alpha", "n_step"))
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    env = make_env(task)
    dataset = load_dataset(task, env, device)
    standardize = make_standardize(args, dataset)

    action_dim = dataset.actions.shape[1]
    behavior = TanhGaussianPolicy(standardize, env.action_space, args.hidden_dim, args.layer_norm).to(device)
    q = TwinQ(standardize, action_dim, args.hidden_dim, args.layer_norm).to(device)
    actor = copy.deepcopy(behavior)
    behavior_acting, q_target, actor_acting = copy.deepcopy(behavior), copy.deepcopy(q), copy.deepcopy(actor)
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    behavior_optimizer = adamw(behavior.parameters())
    optimizer = adamw([{"params": q.parameters()}, {"params": actor.parameters(), "weight_decay": 0.0}])
    parts = {
        "behavior": behavior,
        "behavior_acting": behavior_acting,
        "q": q,
        "q_target": q_target,
        "actor": actor,
        "actor_acting": actor_acting,
        "generator": generator,
    }
    run = Run(args, task, parts | {"behavior_adam": behavior_optimizer, "adam": optimizer})
    if args.compile:
        compiled = partial(torch.compile, mode="reduce-overhead" if device.type == "cuda" else None)
        behavior_loss, brac_loss = compiled(behavior_loss), compiled(brac_loss)

    def policy(observations: torch.Tensor, generator: torch.Generator, acting: str = args.acting) -> torch.Tensor:
        return actor_acting.act(observations, acting, generator)

    # The behavior policy.
    for step in run.steps("bc", args.bc_steps, "losses/bc_"):
        rows = torch.randint(len(dataset.actions), (args.batch_size,), generator=generator, device=device)
        run.metrics = behavior_loss(behavior, dataset.observations[rows], dataset.actions[rows])
        behavior_optimizer.zero_grad()
        run.metrics["loss"].backward()
        behavior_optimizer.step()
        follow(behavior_acting, behavior, ema_weight(args.ema_decay, step))

    # Behavior-regularized Q-learning.
    gamma, n_step = time_scale(args, dataset)
    scale = args.value_scale / (largest_return(dataset, gamma) or 1.0) if args.value_scale else 1.0
    returns, next_rows, discounts = n_step_returns(dataset, scale * dataset.rewards, gamma, n_step)
    for step in run.steps("rl", args.total_steps, "losses/"):
        if step == 1:
            actor.load_state_dict(behavior_acting.state_dict())
        picks = torch.randint(len(dataset.transitions), (args.batch_size,), generator=generator, device=device)
        rows = dataset.transitions[picks]
        run.metrics = brac_loss(
            q,
            q_target,
            actor,
            behavior_acting,
            dataset.observations[rows],
            dataset.actions[rows],
            returns[picks],
            dataset.observations[next_rows[picks]],
            discounts[picks],
            torch.randn(2, args.batch_size, action_dim, generator=generator, device=device),
            args.alpha,
        )
        optimizer.zero_grad()
        run.metrics["loss"].backward()
        optimizer.step()
        follow(q_target, q, args.tau)
        follow(actor_acting, actor, ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.eval_episodes, step, device)

    run.finish(
        "BRAC",
        policy,
        dataset,
        {"q": q, "actor": actor_acting, "behavior": behavior_acting},
        reward_scale=scale,
        gamma=gamma,
        n_step=n_step,
    )
