"""BC: imitation by a Gaussian policy, the continuous counterpart of SAQ-BC.

    loss        mean -log pi(a|s),  pi(a|s) = N(mean(s), diag std^2)
    policy      the mean

The policy is the one that IQL's authors clone behavior with (Kostrikov et al., ICLR 2022): a mean inside the action
space by a tanh and a deviation that does not depend on the state. One Gaussian averages the modes of the data.
Data, evaluation and outputs are those of saq_bc.py, from which they are imported.

    python benchmark/baselines/bc.py                                # this repository's demo dataset
    python benchmark/baselines/bc.py --env-id hopper-medium-v2      # or another id that `python -m tasks` lists
"""

import copy
import os
import signal
import sys
from pathlib import Path
from typing import Literal, NamedTuple

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the slow imports without a word

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_bc import Auto, Batch, Count, Fraction, Positive, Run, Weight, load_task, mlp, parse_args
from vqvae import Standardize, ema_weight, follow, gradient_step, minimize


class Method(NamedTuple):
    total_steps: Auto = None  # gradient steps of the policy; default: 0.15 per transition, 3000 to 50,000
    batch_size: Count = 256  # transitions per gradient step
    hidden_dim: Count = 256  # width of the hidden layers of every network
    learning_rate: Positive = 3e-3  # of every network (the paper: 3e-4)
    weight_decay: Weight = 1e-3  # AdamW's, for the policy
    standardize: bool = True  # standardize observations with the dataset's mean and deviation (the paper: raw)
    layer_norm: bool = True  # normalize the hidden layers of every network (the paper: no)
    ema_decay: Fraction = 0.9995  # decay of the averaged weights, which act; 0: last weights (the paper)
    acting: Literal["mean", "sampled"] = "mean"  # the policy's mean, or a sample


def default_steps(transitions: int) -> int:
    """Gradient steps of each phase where no flag says otherwise, as in the algorithm files."""
    return min(max(3000, transitions * 3 // 20_000 * 1000), 50_000)


class GaussianPolicy(nn.Module):
    """pi(a|s) = N(mean(s), diag std^2): a tanh keeps the mean in [-1, 1], std is the same in every state."""

    def __init__(self, standardize: Standardize, action_dim: int, hidden_dim: int, layer_norm: bool):
        super().__init__()
        self.net = mlp(standardize, action_dim, hidden_dim, layer_norm)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, action_dim) and std (action_dim,) of observations (B, observation_dim)."""
        return self.net(observations).tanh(), self.log_std.clamp(-5.0, 2.0).exp()

    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) (B,) of actions (B, action_dim)."""
        return torch.distributions.Normal(*self(observations), validate_args=False).log_prob(actions).sum(1)

    def act(self, observations: torch.Tensor, acting: str, generator: torch.Generator) -> torch.Tensor:
        """The mean (B, action_dim), or a sample; not clipped."""
        mean, std = self(observations)
        return mean if acting == "mean" else torch.normal(mean, std.expand_as(mean), generator=generator)


def bc_loss(actor: GaussianPolicy, observations: torch.Tensor, actions: torch.Tensor) -> Batch:
    """Negative log-likelihood, in nats, of the dataset's actions (B, action_dim) at (B, observation_dim)."""
    return {"loss": -actor.log_prob(observations, actions).mean()}


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
    args.total_steps = args.total_steps or default_steps(len(data["actions"]))
    standardize, action_dim = Standardize.for_data(data["observations"], args.standardize), data["actions"].shape[1]

    actor = GaussianPolicy(standardize, action_dim, args.hidden_dim, args.layer_norm).to(device)
    actor_acting = copy.deepcopy(actor)
    adam = torch.optim.AdamW(actor.parameters(), args.learning_rate, weight_decay=args.weight_decay, fused=True)
    run = Run(args, task, nn.ModuleDict({"actor": actor, "actor_acting": actor_acting}), [adam], generator)

    @gradient_step(adam, generator, len(data["actions"]), args.batch_size, args.compile)
    def bc_step(rows: torch.Tensor, ema: torch.Tensor) -> Batch:
        metrics = bc_loss(actor, data["observations"][rows], data["actions"][rows])
        minimize(metrics["loss"], adam)
        follow(actor_acting, actor, ema)
        return metrics

    for step in run.steps("bc", args.total_steps, "losses/"):
        run.metrics = bc_step(ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(actor_acting.act, args.acting, args.eval_episodes, step)

    run.finish(actor_acting.act, ("mean", "sampled"), {"actor": actor_acting}, {})
