"""CQL(H): conservative Q-learning on soft actor-critic, the continuous counterpart of SAQ-CQL.

    target      y = r + gamma (1 - terminal) min Q_target(s', a')                     a' ~ pi(.|s')
    penalty     log(1/(3n) sum_j exp(Q(s, a_j)) / p(a_j)) - Q(s, a)                   about log integral exp(Q(s, a)) da
    Q           (Q_1(s, a) - y)^2 + (Q_2(s, a) - y)^2 + alpha (penalty_1 + penalty_2)
    policy      eta log pi(a|s) - min Q(s, a)                                         a ~ pi(.|s)
    eta         eta (-log pi(a|s) + action_dim), which keeps the entropy of pi at -action_dim

Of the 3n actions a_j in every state, n come from the uniform distribution, n from pi(.|s) and n from pi(.|s'); p is
their density. They estimate what SAQ-CQL sums over its K codes. `--action-mode softmax` estimates SAQ-CQL's way of
acting, too.

    Kumar et al., *Conservative Q-Learning for Offline Reinforcement Learning*, NeurIPS 2020, equation 4, appendix F

It differs from the paper where saq_cql.py differs from SAQ-CQL's paper, and flags restore each setting: n-step targets,
gamma and the scale of rewards follow from the data, observations are standardized, every network has layer
normalization, Q has weight decay, and an average of the policy's weights acts. Dataset, evaluation and outputs are
those of saq_cql.py.

    python benchmark/baselines/cql.py --env-id hopper-medium-v2   # `python -m tasks` lists ids; the default is a demo
"""

import copy
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from bc import observation_scaling
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_cql import Run, check_ranges, fill_in_defaults, load_task, mlp, n_step_targets, prepare_torch, reward_scale
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

    # Reinforcement learning
    rl_steps: int | None = None  # gradient steps of Q and policy; None: 0.3 per transition, 6000 to 100,000
    gamma: float | None = None  # discount; None: 1 - 1/h, with the horizon h of the data
    n_step: int | None = None  # rewards per Bellman target; None: h / 50 (paper: 1)
    value_scale: float = 100.0  # scale rewards so that the largest return of the data is this; 0: do not scale
    alpha: float = 5.0  # weight of the conservative penalty
    n_actions: int = 10  # n of the 3n actions that estimate the penalty in a state
    tau: float = 0.05  # rate at which the target network follows Q (paper: 0.005)

    # Optimization
    batch_size: int = 256
    hidden_dim: int = 256  # width of the two hidden layers of every network
    learning_rate: float = 3e-3  # of every network (paper: 3e-4)
    weight_decay: float = 1e-3  # of AdamW, for Q (paper: 0)
    standardize: bool = True  # standardize observations (paper: raw)
    layer_norm: bool = True  # layer normalization in every network (paper: none)
    ema_decay: float = 0.9995  # of the averaged weights, which act; 0: the last weights (paper)
    compile: bool = False  # torch.compile the gradient step

    # Evaluation and outputs
    action_mode: Literal["mean", "sampled", "softmax"] = "mean"  # policy's mean, a sample, or the mean of softmax(Q)
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


class TanhGaussianPolicy(nn.Module):
    """a = tanh(u) with u ~ N(mean(s), diag(std(s)^2)), which fills the action space [-1, 1]."""

    def __init__(self, standardize: Standardize, action_dim: int, args):
        super().__init__()
        self.net = mlp(standardize, 2 * action_dim, args)

    def forward(self, observations: torch.Tensor) -> torch.distributions.Normal:
        """The distribution of u (B, action_dim) at observations (B, observation_dim)."""
        mean, log_std = self.net(observations).chunk(2, 1)
        return torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp(), validate_args=False)

    @staticmethod
    def log_prob(normal: torch.distributions.Normal, u: torch.Tensor) -> torch.Tensor:
        """log pi(a|s) (...,) of the actions a = tanh(u), u (..., action_dim): log N(u) - log |da/du|."""
        # log(1 - tanh(u)^2), without cancellation where tanh is close to 1
        log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return (normal.log_prob(u) - log_slope).sum(-1)

    def act(self, observations: torch.Tensor, action_mode: str, generator: torch.Generator) -> torch.Tensor:
        """The action (B, action_dim) at the mean of u, or a sample."""
        normal = self(observations)
        if action_mode == "mean":
            return normal.mean.tanh()
        return torch.normal(normal.mean, normal.stddev, generator=generator).tanh()


class TwinQ(nn.Module):
    """Two Q-functions of observations (B, observation_dim) and actions (B, action_dim): values (2, B)."""

    def __init__(self, standardize: Standardize, action_dim: int, args):
        super().__init__()
        mean, std = standardize.mean, standardize.std  # actions stay as they are
        both = Standardize(torch.cat([mean, mean.new_zeros(action_dim)]), torch.cat([std, std.new_ones(action_dim)]))
        self.members = nn.ModuleList([mlp(both, 1, args), mlp(both, 1, args)])

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([observations, actions], 1)
        return torch.cat([q(inputs) for q in self.members], 1).T

    def with_fixed_weights(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """The same values. Their gradient reaches the actions, but not the weights of Q."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, weights, (observations, actions))


@torch.no_grad()
def sample_actions(actor, normal, next_normal, uniform, noise):
    """The 3n actions of CQL's penalty for each state, and their log-densities.

    Args:
        normal, next_normal: the policy's distributions of u at s and at s', (B, action_dim).
        uniform: (n, B, action_dim), uniform in (-1, 1).
        noise: (n, 2, B, action_dim), standard normal, for s and for s'.

    Returns:
        actions: (3n, B, action_dim).
        log_densities: (3n, B).
    """
    u = normal.mean + normal.stddev * noise[:, 0]
    next_u = next_normal.mean + next_normal.stddev * noise[:, 1]
    uniform_log_density = uniform.new_full(uniform.shape[:2], -uniform.shape[2] * math.log(2.0))
    actions = torch.cat([uniform, u.tanh(), next_u.tanh()])
    log_densities = torch.cat([uniform_log_density, actor.log_prob(normal, u), actor.log_prob(next_normal, next_u)])
    return actions, log_densities


def cql_loss(q, td_target, q_sampled, log_densities):
    """CQL's temporal-difference loss and its penalty (equation 4), summed over both Q-functions.

    Args:
        q: (2, B), values of the actions taken.
        td_target: (B,), y.
        q_sampled: (2, 3n, B), values of sampled actions.
        log_densities: (3n, B), of the distributions that they are drawn from.

    Returns scalars, the loss and the penalty.
    """
    td_loss = (q - td_target).square().mean(1).sum()
    log_integral = (q_sampled - log_densities).logsumexp(1) - math.log(len(log_densities))
    penalty = (log_integral - q).mean(1).sum()
    return td_loss, penalty


@torch.no_grad()
def softmax_mean(
    q: TwinQ, actor: TanhGaussianPolicy, observations: torch.Tensor, generator: torch.Generator, samples: int = 48
) -> torch.Tensor:
    """The mean action (B, action_dim) of the density exp(min Q(s, a)) / Z, at observations (B, observation_dim).

    SAQ-CQL acts with the mean of a softmax, too, and sums over codes. Here importance sampling estimates it, with as
    many `samples` from the uniform distribution as from the policy.
    """
    normal = actor(observations)
    shape = (samples, *normal.mean.shape)
    uniform = 2.0 * torch.rand(shape, generator=generator, device=observations.device) - 1.0
    noise = torch.randn(shape, generator=generator, device=observations.device)
    u = torch.cat([uniform.clamp(-0.99999, 0.99999).atanh(), normal.mean + normal.stddev * noise])
    actions = u.tanh()
    # The weights do not change when all densities are multiplied, here by 2.
    uniform_log_density = normal.mean.new_tensor(-actions.shape[2] * math.log(2.0))
    log_densities = torch.logaddexp(actor.log_prob(normal, u), uniform_log_density)
    values = q(observations.repeat(len(u), 1), actions.flatten(0, 1)).amin(0).unflatten(0, u.shape[:2])
    weights = (values - log_densities).softmax(0)
    return (weights[:, :, None] * actions).sum(0)


def main(args: Args):
    device = prepare_torch(args)
    generator = torch.Generator(device).manual_seed(args.seed)
    task, data = load_task(args, device)
    if args.rl_steps is None:  # policy and Q learn together, so they get the steps of both phases of SAQ-CQL
        args = replace(args, rl_steps=2 * fill_in_defaults(args, data, task).rl_steps)
    args = fill_in_defaults(args, data, task)
    observations, actions = data["observations"], data["actions"]
    action_dim = actions.shape[1]

    # ---- Networks ----------------------------------------------------------------------------------------------------
    standardize = observation_scaling(observations, args)
    q = TwinQ(standardize, action_dim, args).to(device)
    actor = TanhGaussianPolicy(standardize, action_dim, args).to(device)
    log_eta = nn.Parameter(torch.zeros((), device=device))
    q_target = copy.deepcopy(q)
    actor_ema = copy.deepcopy(actor)  # the average of the weights, which acts
    optimizer = torch.optim.AdamW(
        [{"params": q.parameters()}, {"params": [*actor.parameters(), log_eta], "weight_decay": 0.0}],
        lr=args.learning_rate, weight_decay=args.weight_decay, fused=True,
    )  # fmt: skip
    run = Run(
        "cql", args, task, data, generator,
        modules={
            "q": q, "q_target": q_target, "actor": actor, "actor_ema": actor_ema,
            "entropy": nn.ParameterDict({"log_eta": log_eta}),
        },
        optimizers=[optimizer],
        can_change={"rl_steps"},
    )  # fmt: skip

    # ---- Conservative Q-learning -------------------------------------------------------------------------------------
    scale = reward_scale(args, data, task)
    n_step_rewards, discounts, last = n_step_targets(data, args.gamma, args.n_step)
    n_step_rewards = scale * n_step_rewards
    bootstrap_observations = data["next_observations"][last]

    @accelerate(optimizer, args.compile)
    def cql_step(idx, uniform, noise, ema_rate):
        obs, action, bootstrap_obs = observations[idx], actions[idx], bootstrap_observations[idx]
        normal = actor(obs)
        u = normal.mean + normal.stddev * noise[0, 0]
        log_prob = actor.log_prob(normal, u)

        with torch.no_grad():  # Bellman backup
            next_normal = actor(bootstrap_obs)
            next_action = (next_normal.mean + next_normal.stddev * noise[0, 1]).tanh()
            td_target = n_step_rewards[idx] + discounts[idx] * q_target(bootstrap_obs, next_action).amin(0)

        sampled, log_densities = sample_actions(actor, normal, next_normal, uniform, noise[1:])
        all_obs = torch.cat([obs, obs.repeat(len(sampled), 1)])
        all_values = q(all_obs, torch.cat([action, sampled.flatten(0, 1)]))
        values = all_values[:, : len(obs)]
        sampled_values = all_values[:, len(obs) :].unflatten(1, sampled.shape[:2])
        td_loss, penalty = cql_loss(values, td_target, sampled_values, log_densities)

        eta = log_eta.exp()
        actor_loss = (eta.detach() * log_prob - q.with_fixed_weights(obs, u.tanh()).amin(0)).mean()
        entropy = -log_prob.detach().mean()
        eta_loss = eta * (entropy + action_dim)

        minimize(td_loss + args.alpha * penalty + actor_loss + eta_loss, optimizer)
        soft_update(q_target, q, args.tau)
        soft_update(actor_ema, actor, ema_rate)
        return {
            "td_loss": td_loss, "penalty": penalty, "actor_loss": actor_loss, "entropy": entropy,
            "q_values": values.mean(),
        }  # fmt: skip

    def policy(obs, action_mode, generator):
        if action_mode == "softmax":
            return softmax_mean(q, actor_ema, obs, generator)
        return actor_ema.act(obs, action_mode, generator)

    uniform_shape = (args.n_actions, args.batch_size, action_dim)
    noise_shape = (1 + args.n_actions, 2, args.batch_size, action_dim)
    for step in run.steps("rl", args.rl_steps):
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        uniform = 2.0 * torch.rand(uniform_shape, generator=generator, device=device) - 1.0
        noise = torch.randn(noise_shape, generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))
        run.log(cql_step(idx, uniform, noise, ema_rate))
        if step % args.eval_every == 0 and step < args.rl_steps:
            run.evaluate(policy, step, args.eval_episodes)

    return run.finish(
        policy, args.rl_steps, {"q": q, "actor": actor_ema},
        gamma=args.gamma, n_step=args.n_step, reward_scale=scale,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
