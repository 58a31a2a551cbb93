"""IQL: implicit Q-learning with advantage-weighted regression, the continuous counterpart of SAQ-IQL.

    V           mean |expectile - 1(u < 0)| u^2,  u = min Q_target(s, a) - V(s)
    Q           mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2,  y = w r + gamma (1 - terminal) V(s')
    policy      mean -min (exp (beta u), 100) log pi(a|s),  pi(a|s) = N(mean(s), diag std^2);  acts by its mean

Kostrikov et al., ICLR 2022, equations 5 to 7. Departs from it where saq_iql.py departs from SAQ-IQL's paper, each by a
flag: n-step targets, gamma and w by one rule for every task, observations standardized, Q and V layer-normalized, an
average of the policy's weights acts, beta is near the 1/3 of SAQ-IQL's temperature; no cosine schedule, no dropout.
Data, evaluation and outputs are those of saq_iql.py.

    python benchmark/baselines/iql.py                                # this repository's demo dataset
    python benchmark/baselines/iql.py --env-id hopper-medium-v2      # D4RL, robomimic, Minari as in saq_iql.py
"""

import copy
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import gymnasium as gym
import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from saq_iql import (
    Run,
    domain_scale,
    ema_weight,
    expectile_loss,
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
    """gradient steps of Q, V and policy"""
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
    expectile: float = 0.7
    """expectile of V over the actions of the data; 0.5: their mean"""
    beta: float = 0.3
    """inverse temperature of the advantage weights: 0 imitates, high follows Q (the paper: 3 for locomotion)"""
    tau: float = 0.05
    """weight of Q in each Polyak update of its target network (the paper: 0.005)"""
    value_scale: float = 100.0
    """scale rewards so that the dataset's largest discounted return is this; 0: by domain (the paper)"""
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


class GaussianPolicy(nn.Module):
    """pi(a|s) = N(mean(s), diag std^2): a tanh keeps the mean in the action space, std is the same in every state.

    Args:
        standardize: of observations.
        space: the environment's action space.
        hidden_dim: width of the two hidden layers.
        layer_norm: normalize them.
    """

    def __init__(self, standardize: Standardize, space: gym.spaces.Box, hidden_dim: int, layer_norm: bool):
        super().__init__()
        self.net = mlp(standardize, space.shape[0], hidden_dim, layer_norm)
        self.log_std = nn.Parameter(torch.zeros(space.shape[0]))
        self.register_buffer("center", torch.as_tensor((space.high + space.low) / 2, dtype=torch.float32))
        self.register_buffer("half_range", torch.as_tensor((space.high - space.low) / 2, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, action_dim) and std (action_dim,) of observations (B, observation_dim)."""
        return self.center + self.half_range * self.net(observations).tanh(), self.log_std.clamp(-5.0, 2.0).exp()

    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) (B,) of actions (B, action_dim)."""
        return torch.distributions.Normal(*self(observations), validate_args=False).log_prob(actions).sum(1)

    def act(self, observations: torch.Tensor, acting: str, generator: torch.Generator) -> torch.Tensor:
        """The mean (B, action_dim), or a sample; not clipped."""
        mean, std = self(observations)
        return mean if acting == "mean" else torch.normal(mean, std.expand_as(mean), generator=generator)


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


def iql_loss(
    q: TwinQ,
    q_target: TwinQ,
    v: nn.Module,
    actor: GaussianPolicy,
    observations: torch.Tensor,
    actions: torch.Tensor,
    rewards: torch.Tensor,
    next_observations: torch.Tensor,
    discounts: torch.Tensor,
    expectile: float,
    beta: float,
) -> dict[str, torch.Tensor]:
    """IQL's three losses (Kostrikov et al., 2022, equations 5 to 7), which share no parameter, as one sum.

    Args:
        v: maps observations to values (B, 1) of the states.
        observations, next_observations: (B, observation_dim) float32.
        actions: (B, action_dim) float32.
        rewards, discounts: (B,) float32, of the n steps from `observations` to `next_observations`.

    Returns:
        Scalars: `loss` to minimize, its parts `v_loss`, `q_loss`, `actor_loss`, and the means `v_values`, `q_values`.
    """
    with torch.no_grad():
        targets = rewards + discounts * v(next_observations).squeeze(1)
        target_taken = q_target(observations, actions).amin(0)
    values = v(observations).squeeze(1)
    taken = q(observations, actions)
    advantages = target_taken - values
    weights = (beta * advantages.detach()).exp().clamp(max=100.0)
    v_loss = expectile_loss(advantages, expectile)
    q_loss = (taken - targets).square().mean(1).sum()
    actor_loss = -(weights * actor.log_prob(observations, actions)).mean()
    return {
        "loss": v_loss + q_loss + actor_loss,
        "v_loss": v_loss.detach(),
        "q_loss": q_loss.detach(),
        "actor_loss": actor_loss.detach(),
        "v_values": values.detach().mean(),
        "q_values": taken.detach().mean(),
    }


if __name__ == "__main__":
    args, task = parse_args(Args, positive=("n_step",))
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    env = make_env(task)
    dataset = load_dataset(task, env, device)
    standardize = make_standardize(args, dataset)

    q = TwinQ(standardize, dataset.actions.shape[1], args.hidden_dim, args.layer_norm).to(device)
    v = mlp(standardize, 1, args.hidden_dim, args.layer_norm).to(device)
    actor = GaussianPolicy(standardize, env.action_space, args.hidden_dim, args.layer_norm).to(device)
    q_target, actor_acting = copy.deepcopy(q), copy.deepcopy(actor)
    no_decay = [*v.parameters(), *actor.parameters()]
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    optimizer = adamw([{"params": q.parameters()}, {"params": no_decay, "weight_decay": 0.0}])
    modules = {"q": q, "q_target": q_target, "v": v, "actor": actor, "actor_acting": actor_acting}
    run = Run(args, task, modules | {"generator": generator, "adam": optimizer})
    if args.compile:
        iql_loss = torch.compile(iql_loss, mode="reduce-overhead" if device.type == "cuda" else None)

    def policy(observations: torch.Tensor, generator: torch.Generator, acting: str = args.acting) -> torch.Tensor:
        return actor_acting.act(observations, acting, generator)

    gamma, n_step = time_scale(args, dataset)
    if args.value_scale:
        scale = args.value_scale / (largest_return(dataset, gamma) or 1.0)
    else:
        scale = domain_scale(args.env_id, dataset.episode_returns)
    returns, next_rows, discounts = n_step_returns(dataset, scale * dataset.rewards, gamma, n_step)
    for step in run.steps("rl", args.total_steps, "losses/"):
        picks = torch.randint(len(dataset.transitions), (args.batch_size,), generator=generator, device=device)
        rows = dataset.transitions[picks]
        run.metrics = iql_loss(
            q,
            q_target,
            v,
            actor,
            dataset.observations[rows],
            dataset.actions[rows],
            returns[picks],
            dataset.observations[next_rows[picks]],
            discounts[picks],
            args.expectile,
            args.beta,
        )
        optimizer.zero_grad()
        run.metrics["loss"].backward()
        optimizer.step()
        follow(q_target, q, args.tau)
        follow(actor_acting, actor, ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.eval_episodes, step, device)

    run.finish(
        "IQL", policy, dataset, {"q": q, "v": v, "actor": actor_acting}, reward_scale=scale, gamma=gamma, n_step=n_step
    )
