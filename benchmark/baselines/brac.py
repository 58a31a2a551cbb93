"""BRAC with value penalty: behavior-regularized actor-critic, the continuous counterpart of SAQ-BRAC.

    behavior    -log pi_b(a|s)                                                        trained before Q-learning
    target      y = r + gamma (1 - terminal) (min Q_target(s', a') - alpha KL(pi || pi_b)(s'))      a' ~ pi(.|s')
    Q           (Q_1(s, a) - y)^2 + (Q_2(s, a) - y)^2
    policy      alpha KL(pi || pi_b)(s) - min Q(s, a)                                               a ~ pi(.|s)

pi and pi_b are Gaussians behind the same tanh. It is a bijection, so their KL is that of the Gaussians, in closed form,
which BRAC estimates from samples. pi starts as pi_b.

    Wu et al., *Behavior Regularized Offline Reinforcement Learning*, 2019, section 3

It differs from the paper where saq_brac.py differs from SAQ-BRAC's, and flags restore each setting: n-step targets,
gamma and the scale of rewards follow from the data, observations are standardized, every network has layer
normalization, Q and pi_b have weight decay, and averages of the weights act. Dataset, evaluation and outputs are those
of saq_brac.py.

    python benchmark/baselines/brac.py --env-id hopper-medium-v2  # `python -m tasks` lists ids; the default is a demo
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from bc import observation_scaling
from cql import TanhGaussianPolicy, TwinQ
from torch.distributions import kl_divergence

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_brac import Run, check_ranges, fill_in_defaults, load_task, n_step_targets, prepare_torch, reward_scale
from vqvae import accelerate, minimize, soft_update


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
    bc_steps: int | None = None  # gradient steps of the behavior policy; None: 0.15 per transition, 3000 to 50,000
    rl_steps: int | None = None  # gradient steps of Q and policy; None: as for bc_steps
    gamma: float | None = None  # discount; None: 1 - 1/h, with the horizon h of the data
    n_step: int | None = None  # rewards per Bellman target; None: h / 50 (paper: 1)
    value_scale: float = 100.0  # scale rewards so that the largest return of the data is this; 0: do not scale
    alpha: float = 3.0  # weight of the KL to the behavior policy, in the policy's loss and in the target
    tau: float = 0.05  # rate at which the target network follows Q (paper: 0.005)

    # Optimization
    batch_size: int = 256
    hidden_dim: int = 256  # width of the two hidden layers of every network
    learning_rate: float = 3e-3  # of every network (paper: 3e-4)
    weight_decay: float = 1e-3  # of AdamW, for Q and the behavior policy
    standardize: bool = True  # standardize observations (paper: raw)
    layer_norm: bool = True  # layer normalization in every network (paper: none)
    ema_decay: float = 0.9995  # of the averaged weights, which act; 0: the last weights (paper)
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


def behavior_loss(behavior: TanhGaussianPolicy, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood, in nats, of the dataset's actions (B, action_dim) at (B, observation_dim)."""
    return -behavior.log_prob(behavior(observations), actions.atanh()).mean()


def brac_loss(q, td_target, q_policy, kl, alpha):
    """Losses of Q and policy (Wu et al., section 3).

    Args:
        q: (2, B), values of the actions taken, of both Q-functions.
        td_target: (B,), y.
        q_policy: (B,), the smaller of the values of an action of the policy.
        kl: (B,), KL(pi || pi_b).

    Returns scalars, the losses of Q and policy.
    """
    q_loss = (q - td_target).square().mean(1).sum()
    actor_loss = (alpha * kl - q_policy).mean()
    return q_loss, actor_loss


def main(args: Args):
    device = prepare_torch(args)
    generator = torch.Generator(device).manual_seed(args.seed)
    task, data = load_task(args, device)
    args = fill_in_defaults(args, data, task)
    observations, actions = data["observations"], data["actions"]
    action_dim = actions.shape[1]

    # ---- Networks ----------------------------------------------------------------------------------------------------
    standardize = observation_scaling(observations, args)
    behavior = TanhGaussianPolicy(standardize, action_dim, args).to(device)
    q = TwinQ(standardize, action_dim, args).to(device)
    q_target = copy.deepcopy(q)
    actor = copy.deepcopy(behavior)
    behavior_ema = copy.deepcopy(behavior)  # averages of the weights, which act
    actor_ema = copy.deepcopy(actor)
    behavior_optimizer = torch.optim.AdamW(
        behavior.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
    )
    optimizer = torch.optim.AdamW(
        [{"params": q.parameters()}, {"params": actor.parameters(), "weight_decay": 0.0}],
        lr=args.learning_rate, weight_decay=args.weight_decay, fused=True,
    )  # fmt: skip
    run = Run(
        "brac", args, task, data, generator,
        modules={
            "behavior": behavior, "behavior_ema": behavior_ema, "q": q, "q_target": q_target, "actor": actor,
            "actor_ema": actor_ema,
        },
        optimizers=[behavior_optimizer, optimizer],
        can_change={"rl_steps"},
    )  # fmt: skip

    # ---- 1. Behavior policy ------------------------------------------------------------------------------------------
    @accelerate(behavior_optimizer, args.compile)
    def behavior_step(idx, ema_rate):
        loss = behavior_loss(behavior, observations[idx], actions[idx])
        minimize(loss, behavior_optimizer)
        soft_update(behavior_ema, behavior, ema_rate)
        return {"loss": loss}

    for step in run.steps("bc", args.bc_steps):
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))
        run.log(behavior_step(idx, ema_rate))

    # ---- 2. Behavior-regularized Q-learning --------------------------------------------------------------------------
    scale = reward_scale(args, data, task)
    n_step_rewards, discounts, last = n_step_targets(data, args.gamma, args.n_step)
    n_step_rewards = scale * n_step_rewards
    bootstrap_observations = data["next_observations"][last]

    @accelerate(optimizer, args.compile)
    def brac_step(idx, noise, ema_rate):
        obs, action, bootstrap_obs = observations[idx], actions[idx], bootstrap_observations[idx]
        with torch.no_grad():  # Bellman backup
            next_normal = actor(bootstrap_obs)
            next_kl = kl_divergence(next_normal, behavior_ema(bootstrap_obs)).sum(1)
            next_action = (next_normal.mean + next_normal.stddev * noise[1]).tanh()
            next_values = q_target(bootstrap_obs, next_action).amin(0) - args.alpha * next_kl
            td_target = n_step_rewards[idx] + discounts[idx] * next_values
            behavior_normal = behavior_ema(obs)
        values = q(obs, action)
        normal = actor(obs)
        kl = kl_divergence(normal, behavior_normal).sum(1)
        policy_action = (normal.mean + normal.stddev * noise[0]).tanh()
        policy_values = q.with_fixed_weights(obs, policy_action).amin(0)
        q_loss, actor_loss = brac_loss(values, td_target, policy_values, kl, args.alpha)
        minimize(q_loss + actor_loss, optimizer)
        soft_update(q_target, q, args.tau)
        soft_update(actor_ema, actor, ema_rate)
        return {"q_loss": q_loss, "actor_loss": actor_loss, "kl": kl.mean(), "q_values": values.mean()}

    for step in run.steps("rl", args.rl_steps):
        if step == 1:  # in place, because a CUDA graph keeps the tensors that it has seen
            actor.load_state_dict(behavior_ema.state_dict())
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        noise = torch.randn(2, args.batch_size, action_dim, generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))
        run.log(brac_step(idx, noise, ema_rate))
        if step % args.eval_every == 0 and step < args.rl_steps:
            run.evaluate(actor_ema.act, step, args.eval_episodes)

    return run.finish(
        actor_ema.act, args.rl_steps, {"q": q, "actor": actor_ema, "behavior": behavior_ema},
        gamma=args.gamma, n_step=args.n_step, reward_scale=scale,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
