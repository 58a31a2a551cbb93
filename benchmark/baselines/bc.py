"""BC: behavior cloning with a Gaussian policy, the continuous counterpart of SAQ-BC.

    policy      pi(a|s) = N(mean(s), diag(std^2))
    loss        -log pi(a|s)

The policy is the one that IQL's authors clone behavior with (Kostrikov et al., ICLR 2022): its mean is kept inside the
action space with a tanh, and its standard deviation is the same in every state. A single Gaussian averages the modes of
the data. Dataset, evaluation and outputs are those of saq_bc.py.

    python benchmark/baselines/bc.py --env-id hopper-medium-v2   # `python -m tasks` lists ids; the default is a demo
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_bc import Run, check_ranges, load_task, mlp, prepare_torch
from saq_iql import fill_in_defaults  # which skips the arguments of the VQ-VAE
from vqvae import Standardize, accelerate, minimize, soft_update


@dataclass
class Args:
    # Data
    env_id: str | None = None  # dataset and environment, see `python -m tasks`; None: as dataset_path says, or the demo
    dataset_path: str | None = None  # D4RL, robomimic or OGBench file, or LeRobot folder; None: the dataset of env_id
    dataset_filter: str | None = None  # robomimic: filter key, such as train; None: all demonstrations
    observation_keys: list[str] | None = None  # robomimic: None for end effectors, grippers, object; LeRobot: the state
    assume_success: bool = False  # LeRobot: count every episode as a success, in place of its rewards
    sparse_rewards: bool = False  # OGBench: -1 until the whole task is solved, in place of rewards for its parts
    max_episode_steps: int | None = None  # maximum episode length; None: the benchmark's

    # Behavior cloning
    bc_steps: int | None = None  # gradient steps of the policy; None: 0.15 per transition, 3000 to 50,000

    # Optimization
    batch_size: int = 256
    hidden_dim: int = 256  # width of the two hidden layers
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3  # of AdamW
    standardize: bool = True  # standardize observations
    layer_norm: bool = True  # layer normalization
    ema_decay: float = 0.9995  # of the averaged weights, which act; 0: the last weights
    compile: bool = False  # torch.compile the gradient step

    # Evaluation and outputs
    action_mode: Literal["mean", "sampled"] = "mean"  # the policy's mean, or a sample
    eval_every: int = 10_000  # gradient steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation
    final_eval_episodes: int | None = None  # episodes after the last step; None: 100 (robosuite: 50)
    capture_video: bool = False  # write video.gif of the final policy
    seed: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    run_dir: str | None = None  # folder of the run, which continues if it is there already; None: a new one in runs/
    checkpoint_every: int = 10_000  # gradient steps between checkpoints
    track: bool = False  # also log to Weights & Biases

    def __post_init__(self):
        check_ranges(self)


class GaussianPolicy(nn.Module):
    """pi(a|s) = N(mean(s), diag(std^2)). A tanh keeps the mean in [-1, 1]; std is the same in every state."""

    def __init__(self, standardize: Standardize, action_dim: int, args):
        super().__init__()
        self.net = mlp(standardize, action_dim, args)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observations: torch.Tensor) -> torch.distributions.Normal:
        """The distribution of actions (B, action_dim) at observations (B, observation_dim)."""
        mean = self.net(observations).tanh()
        std = self.log_std.clamp(-5.0, 2.0).exp()
        return torch.distributions.Normal(mean, std.expand_as(mean), validate_args=False)

    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) (B,) of actions (B, action_dim)."""
        return self(observations).log_prob(actions).sum(1)

    def act(self, observations: torch.Tensor, action_mode: str, generator: torch.Generator) -> torch.Tensor:
        """The mean (B, action_dim), or a sample; not clipped."""
        normal = self(observations)
        if action_mode == "mean":
            return normal.mean
        return torch.normal(normal.mean, normal.stddev, generator=generator)


def observation_scaling(observations: torch.Tensor, args) -> Standardize:
    """Standardization with the mean and deviation of the data or, without args.standardize, by nothing."""
    if args.standardize:
        return Standardize.for_data(observations)
    return Standardize(torch.zeros_like(observations[0]), torch.ones_like(observations[0]))


def main(args: Args):
    device = prepare_torch(args)
    generator = torch.Generator(device).manual_seed(args.seed)
    task, data = load_task(args, device)
    args = fill_in_defaults(args, data, task)
    observations, actions = data["observations"], data["actions"]

    # ---- Networks ----------------------------------------------------------------------------------------------------
    standardize = observation_scaling(observations, args)
    actor = GaussianPolicy(standardize, actions.shape[1], args).to(device)
    actor_ema = copy.deepcopy(actor)  # the average of the weights, which acts
    optimizer = torch.optim.AdamW(actor.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    run = Run(
        "bc", args, task, data, generator, modules={"actor": actor, "actor_ema": actor_ema}, optimizers=[optimizer],
        can_change={"bc_steps"},
    )  # fmt: skip

    # ---- Behavior cloning --------------------------------------------------------------------------------------------
    @accelerate(optimizer, args.compile)
    def bc_step(idx, ema_rate):
        loss = -actor.log_prob(observations[idx], actions[idx]).mean()
        minimize(loss, optimizer)
        soft_update(actor_ema, actor, ema_rate)
        return {"loss": loss}

    for step in run.steps("bc", args.bc_steps):
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))
        run.log(bc_step(idx, ema_rate))
        if step % args.eval_every == 0 and step < args.bc_steps:
            run.evaluate(actor_ema.act, step, args.eval_episodes)

    return run.finish(actor_ema.act, args.bc_steps, {"actor": actor_ema})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
