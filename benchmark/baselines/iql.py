"""IQL: implicit Q-learning with advantage-weighted regression, the continuous counterpart of SAQ-IQL.

    V           |expectile - 1(adv < 0)| adv^2                      adv = min Q_target(s, a) - V(s)
    Q           (Q_1(s, a) - y)^2 + (Q_2(s, a) - y)^2               y = r + gamma (1 - terminal) V(s')
    policy      -min(exp(beta adv), 100) log pi(a|s)                pi(a|s) = N(mean(s), diag(std^2))

    Kostrikov et al., *Offline Reinforcement Learning with Implicit Q-Learning*, ICLR 2022, equations 5 to 7

It differs from the paper where saq_iql.py differs from SAQ-IQL's paper, and flags restore each setting: n-step targets,
gamma and the scale of rewards follow from the data, observations are standardized, every network has layer
normalization, Q has weight decay, an average of the policy's weights acts, and beta is about 1 / SAQ-IQL's temperature.
There is no cosine schedule and no dropout. Dataset, evaluation and outputs are those of saq_iql.py.

    python benchmark/baselines/iql.py --env-id hopper-medium-v2   # `python -m tasks` lists ids; the default is a demo
"""

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from bc import GaussianPolicy, observation_scaling
from cql import TwinQ

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_iql import Run, check_ranges, fill_in_defaults, load_task, mlp, n_step_targets, prepare_torch, reward_scale
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
    rl_steps: int | None = None  # gradient steps of Q, V and policy; None: 0.3 per transition, 6000 to 100,000
    gamma: float | None = None  # discount; None: 1 - 1/h, with the horizon h of the data
    n_step: int | None = None  # rewards per Bellman target; None: h / 50 (paper: 1)
    value_scale: float = 100.0  # scale rewards so that the largest return of the data is this; 0: do not scale
    expectile: float = 0.7  # V is this expectile of Q over the actions of the data
    beta: float = 0.3  # inverse temperature of the policy: a low one imitates, a high one follows Q (paper: 3)
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


def iql_loss(q, v, q_target, td_target, log_prob, expectile, beta):
    """IQL's losses of V, Q and policy (equations 5 to 7).

    Args:
        q: (2, B), values of the actions taken, of both Q-functions.
        v: (B,), V(s).
        q_target: (B,), the smaller of the values of the two target networks.
        td_target: (B,), y.
        log_prob: (B,), log pi(a|s) of the actions taken.

    Returns scalars, the losses of V, Q and policy.
    """
    advantage = q_target - v
    expectile_weight = torch.where(advantage < 0, 1 - expectile, expectile)
    v_loss = (expectile_weight * advantage.square()).mean()
    q_loss = (q - td_target).square().mean(1).sum()
    actor_weight = (beta * advantage.detach()).exp().clamp(max=100.0)
    actor_loss = -(actor_weight * log_prob).mean()
    return v_loss, q_loss, actor_loss


def main(args: Args):
    device = prepare_torch(args)
    generator = torch.Generator(device).manual_seed(args.seed)
    task, data = load_task(args, device)
    if args.rl_steps is None:  # policy and Q learn together, so they get the steps of both phases of SAQ-IQL
        args = replace(args, rl_steps=2 * fill_in_defaults(args, data, task).rl_steps)
    args = fill_in_defaults(args, data, task)
    observations, actions = data["observations"], data["actions"]

    # ---- Networks ----------------------------------------------------------------------------------------------------
    standardize = observation_scaling(observations, args)
    q = TwinQ(standardize, actions.shape[1], args).to(device)
    v = mlp(standardize, 1, args)
    actor = GaussianPolicy(standardize, actions.shape[1], args).to(device)
    q_target = copy.deepcopy(q)
    actor_ema = copy.deepcopy(actor)  # the average of the weights, which acts
    optimizer = torch.optim.AdamW(
        [{"params": q.parameters()}, {"params": [*v.parameters(), *actor.parameters()], "weight_decay": 0.0}],
        lr=args.learning_rate, weight_decay=args.weight_decay, fused=True,
    )  # fmt: skip
    run = Run(
        "iql", args, task, data, generator,
        modules={"q": q, "q_target": q_target, "v": v, "actor": actor, "actor_ema": actor_ema},
        optimizers=[optimizer],
        can_change={"rl_steps"},
    )  # fmt: skip

    # ---- Implicit Q-learning -----------------------------------------------------------------------------------------
    scale = reward_scale(args, data, task)
    n_step_rewards, discounts, last = n_step_targets(data, args.gamma, args.n_step)
    n_step_rewards = scale * n_step_rewards
    bootstrap_observations = data["next_observations"][last]

    @accelerate(optimizer, args.compile)
    def iql_step(idx, ema_rate):
        obs, action, bootstrap_obs = observations[idx], actions[idx], bootstrap_observations[idx]
        with torch.no_grad():  # Bellman backup
            td_target = n_step_rewards[idx] + discounts[idx] * v(bootstrap_obs).squeeze(1)
            target_values = q_target(obs, action).amin(0)
        values = q(obs, action)
        state_values = v(obs).squeeze(1)
        v_loss, q_loss, actor_loss = iql_loss(
            values, state_values, target_values, td_target, actor.log_prob(obs, action), args.expectile, args.beta
        )
        minimize(v_loss + q_loss + actor_loss, optimizer)
        soft_update(q_target, q, args.tau)
        soft_update(actor_ema, actor, ema_rate)
        return {
            "v_loss": v_loss, "q_loss": q_loss, "actor_loss": actor_loss,
            "v_values": state_values.mean(), "q_values": values.mean(),
        }  # fmt: skip

    for step in run.steps("rl", args.rl_steps):
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))
        run.log(iql_step(idx, ema_rate))
        if step % args.eval_every == 0 and step < args.rl_steps:
            run.evaluate(actor_ema.act, step, args.eval_episodes)

    return run.finish(
        actor_ema.act, args.rl_steps, {"q": q, "v": v, "actor": actor_ema},
        gamma=args.gamma, n_step=args.n_step, reward_scale=scale,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
