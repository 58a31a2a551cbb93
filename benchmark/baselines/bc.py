"""BC: imitation by a Gaussian policy, the continuous counterpart of SAQ-BC.

    loss        mean -log pi(a|s),  pi(a|s) = N(mean(s), diag std^2)
    policy      the mean, clipped to the action space

The policy is the one that IQL's authors clone behavior with (Kostrikov et al., ICLR 2022): a mean inside the action
space by a tanh and a deviation that does not depend on the state. One Gaussian averages the modes of the data.
Data, evaluation and outputs are those of saq_bc.py, from which they are imported.

    python benchmark/baselines/bc.py                                # this repository's demo dataset
    python benchmark/baselines/bc.py --env-id hopper-medium-v2      # D4RL, robomimic, Minari as in saq_bc.py
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from saq_bc import Run, ema_weight, follow, load_dataset, make_env, make_standardize, mlp, parse_args
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
    total_steps: int = 3000
    """gradient steps of the policy"""
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
    """AdamW's weight decay for the policy"""
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


def bc_loss(actor: GaussianPolicy, observations: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Negative log-likelihood, in nats, of the dataset's actions (B, action_dim) at (B, observation_dim)."""
    return {"loss": -actor.log_prob(observations, actions).mean()}


if __name__ == "__main__":
    args, task = parse_args(Args)
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    env = make_env(task)
    dataset = load_dataset(task, env, device)
    standardize = make_standardize(args, dataset)

    actor = GaussianPolicy(standardize, env.action_space, args.hidden_dim, args.layer_norm).to(device)
    actor_acting = copy.deepcopy(actor)
    optimizer = torch.optim.AdamW(actor.parameters(), args.learning_rate, weight_decay=args.weight_decay, fused=True)
    run = Run(args, task, {"actor": actor, "actor_acting": actor_acting, "generator": generator, "adam": optimizer})
    if args.compile:
        bc_loss = torch.compile(bc_loss, mode="reduce-overhead" if device.type == "cuda" else None)

    def policy(observations: torch.Tensor, generator: torch.Generator, acting: str = args.acting) -> torch.Tensor:
        return actor_acting.act(observations, acting, generator)

    for step in run.steps("bc", args.total_steps, "losses/"):
        rows = torch.randint(len(dataset.actions), (args.batch_size,), generator=generator, device=device)
        run.metrics = bc_loss(actor, dataset.observations[rows], dataset.actions[rows])
        optimizer.zero_grad()
        run.metrics["loss"].backward()
        optimizer.step()
        follow(actor_acting, actor, ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.eval_episodes, step, device)

    run.finish("BC", policy, dataset, {"actor": actor_acting})
