"""SAQ-BRAC: behavior-regularized Q-learning, in closed form, on the codes of a state-conditioned action VQ-VAE.

The VQ-VAE maps every action of the dataset to a distribution p over K codes. BRAC charges the policy for its KL
divergence from the behavior policy, in the objective and in the backup (value penalty). Over codes the best policy and
its value have a closed form, so there is no actor to train and no KL to estimate:

    behavior    -sum_k p_k log pi_b(k|s)
    policy      pi(.|s) = argmax_pi {E_pi[Q(s, k)] - alpha KL(pi || pi_b)} = softmax_k(Q(s, k) / alpha + log pi_b(k|s))
    value       max_pi {E_pi[Q(s, k)] - alpha KL(pi || pi_b)} = alpha logsumexp_k(Q(s, k) / alpha + log pi_b(k|s))
    target      y = R + gamma^n (1 - terminal) value(s_n)        value computed from Q_target
    Q           sum_k p_k (Q(s, k) - y)^2

R is the discounted sum of n rewards from s on, and s_n the state after them. As alpha goes to 0 this
becomes Q-learning over the codes where pi_b > 0; as alpha grows, the policy tends to pi_b.

    Luo et al., *Action-Quantized Offline Reinforcement Learning for Robotic Skill Learning*, CoRL 2023, section 4
    Wu et al., *Behavior Regularized Offline Reinforcement Learning*, 2019, section 3

    python saq_brac.py --env-id hopper-medium-v2        # `python -m tasks` lists the ids; the default is a demo
"""

import copy
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae import VQVAE, Standardize, accelerate, minimize, replace_file, soft_update, train_vqvae


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

    # Codes
    vqvae_steps: int | None = None  # gradient steps of the VQ-VAE; None: 0.15 per transition, 3000 to 50,000
    vqvae_path: str | None = None  # vqvae.pt of another run on the same dataset; None: train one
    codebook_size: int = 64  # K, the number of codes
    state_conditioned: bool = True  # condition codes on the observation; otherwise all states share the same K actions
    soft_codes: bool = True  # train on soft assignments to nearby codes; otherwise on the nearest code (paper)
    dead_code_reset_every: int = 500  # gradient steps between resets of dead codes; 0: never (paper)

    # Reinforcement learning
    bc_steps: int | None = None  # gradient steps of the behavior policy; None: 0.15 per transition, 3000 to 50,000
    rl_steps: int | None = None  # gradient steps of Q; None: 0.15 per transition, 3000 to 50,000
    gamma: float | None = None  # discount; None: 1 - 1/h, h: mean trajectory length, max_episode_steps / 4 in play data
    n_step: int | None = None  # rewards per Bellman target; None: h / 50, 1 in play data (paper: 1)
    value_scale: float = 100.0  # scale rewards so that the largest absolute return of the data equals this; 0: off
    alpha: float = 3.0  # weight of the KL divergence from the behavior policy
    tau: float = 0.05  # rate at which the target network follows Q (paper: 0.005)

    # Optimization
    batch_size: int = 256  # transitions per gradient step
    hidden_dim: int = 256  # width of the two hidden layers of every network
    learning_rate: float = 3e-3  # of every network (paper: 3e-4)
    weight_decay: float = 1e-3  # of AdamW, for Q and the behavior policy
    standardize: bool = True  # standardize observations (paper: no)
    layer_norm: bool = True  # layer normalization in every network (paper: no)
    ema_decay: float = 0.9995  # decay of the weight average used for evaluation; 0: the last weights (paper)
    compile: bool = False  # torch.compile the gradient steps

    # Evaluation and outputs
    action_mode: Literal["mean", "greedy", "sampled"] = "mean"  # mean over codes, most probable code, or a sample
    eval_every: int = 10_000  # gradient steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation
    final_eval_episodes: int | None = None  # episodes after the last step; None: 100 (robosuite: 50)
    capture_video: bool = False  # write video.gif of the final policy
    seed: int = 1  # of networks, batches and evaluation episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is a GPU
    run_dir: str | None = None  # run folder; a run already there is resumed; None: a new one in runs/
    checkpoint_every: int = 10_000  # gradient steps between checkpoints
    track: bool = False  # also log to Weights & Biases

    def __post_init__(self):
        check_ranges(self)
        if self.alpha == 0:
            raise ValueError("alpha must be positive")


def td_loss(q, td_target, p):
    """Squared temporal differences, averaged over the codes k ~ p.

    Args:
        q: (B, K), values of all codes.
        td_target: (B,), y.
        p: (B, K), probabilities of the codes of the action taken.
    """
    return (p * (q - td_target[:, None]).square()).sum(1).mean()


def policy_logits(q, log_pi_b, alpha):
    """Logits (B, K) of the policy that maximizes E_pi[Q] - alpha KL(pi || pi_b), from Q and log pi_b, both (B, K)."""
    return q / alpha + log_pi_b


def n_step_targets(data, gamma, n):
    """The pieces of the n-step target y = R + discount * value(s_n) for every transition.

    Sums stop after a terminal transition and at the end of a trajectory.

    Args:
        data: rewards, terminals (N,) float32; ends (N,) bool.

    Returns:
        sums: (N,), R, the discounted sum of up to n rewards.
        discounts: (N,), gamma ** (number of rewards summed); 0 if the last transition is terminal.
        last_idx: (N,) int64, the transition with the last of these rewards; its next observation is s_n.
    """
    rewards, terminals = data["rewards"], data["terminals"]
    continues = ~data["ends"] & (terminals == 0)
    last_idx = torch.arange(len(rewards), device=rewards.device)
    last_discounts = torch.ones_like(rewards)  # of the last reward in the sum
    sums = rewards
    for _ in range(n - 1):
        extends = continues[last_idx]
        if not extends.any():
            break
        last_idx = torch.where(extends, last_idx + 1, last_idx)
        last_discounts = torch.where(extends, gamma * last_discounts, last_discounts)
        sums = sums + extends * last_discounts * rewards[last_idx]
    return sums, gamma * last_discounts * (1 - terminals[last_idx]), last_idx


@torch.no_grad()
def log_probs(network, observations):
    """log pi(k|s) (N, K) from a network of logits, for observations (N, observation_dim)."""
    result = torch.empty(len(observations), network[-1].out_features, device=observations.device)
    for rows, chunk in zip(result.split(16_384), observations.split(16_384)):  # in chunks, to bound memory
        rows.copy_(network(chunk).log_softmax(1))
    return result


def main(args: Args):
    device = prepare_torch(args)
    generator = torch.Generator(device).manual_seed(args.seed)
    task, data = load_task(args, device)
    args = fill_in_defaults(args, data, task)
    observations, actions = data["observations"], data["actions"]

    # ---- Networks (all standardize observations the way the VQ-VAE does) ---------------------------------------------
    vqvae = VQVAE.for_data(
        observations, actions, args.standardize, codebook_size=args.codebook_size, hidden_dim=args.hidden_dim,
        layer_norm=args.layer_norm, state_conditioned=args.state_conditioned,
    )  # fmt: skip
    if args.vqvae_path:
        load_vqvae(vqvae, args.vqvae_path)
    behavior = mlp(vqvae.standardize, args.codebook_size, args)
    q = mlp(vqvae.standardize, args.codebook_size, args)
    q_target = copy.deepcopy(q)

    # Evaluation uses moving averages (EMA) of the trained weights. vqvae is the average of vqvae_learner.
    vqvae_learner = copy.deepcopy(vqvae)
    behavior_ema = copy.deepcopy(behavior)
    q_ema = copy.deepcopy(q)

    vqvae_optimizer = torch.optim.Adam(vqvae_learner.parameters(), lr=args.learning_rate, fused=True)
    behavior_optimizer = torch.optim.AdamW(
        behavior.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
    )
    q_optimizer = torch.optim.AdamW(q.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)

    run = Run(
        "saq_brac", args, task, data, generator,
        modules=dict(
            vqvae=vqvae, vqvae_learner=vqvae_learner, behavior=behavior, behavior_ema=behavior_ema,
            q=q, q_target=q_target, q_ema=q_ema,
        ),
        optimizers=[vqvae_optimizer, behavior_optimizer, q_optimizer],
        can_change={"rl_steps"},
    )  # fmt: skip

    # ---- 1. Codes: train the VQ-VAE, then compute the code probabilities (N, K) of every action, once ----------------
    if not args.vqvae_path:
        train_vqvae(
            vqvae, observations, actions, steps=run.steps("vqvae", args.vqvae_steps), batch_size=args.batch_size,
            learner=vqvae_learner, optimizer=vqvae_optimizer, generator=generator,
            dead_code_reset_every=args.dead_code_reset_every, ema_decay=args.ema_decay,
            compile=args.compile, on_step=run.log,
        )  # fmt: skip
    vqvae.save(run.folder / "vqvae.pt")
    if args.soft_codes:
        code_probs = vqvae.soft_codes(observations, actions)
    else:
        code_probs = F.one_hot(vqvae.encode(observations, actions), args.codebook_size).float()

    # ---- 2. Behavior policy over codes -------------------------------------------------------------------------------
    @accelerate(behavior_optimizer, args.compile)  # CUDA graph on a GPU, torch.compile on request; the same result
    def behavior_step(idx, ema_rate):
        loss = F.cross_entropy(behavior(observations[idx]), code_probs[idx])
        minimize(loss, behavior_optimizer)  # zero_grad, backward, step
        soft_update(behavior_ema, behavior, ema_rate)
        return {"loss": loss}

    for step in run.steps("bc", args.bc_steps):  # 1, 2, ..., total; a resumed run starts later
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))  # falls from 1, about as 10 / step, to 1 - ema_decay
        metrics = behavior_step(idx, ema_rate)
        run.log(metrics)

    # ---- 3. Behavior-regularized Q-learning on the codes -------------------------------------------------------------
    scale = reward_scale(args, data, task)  # scales the largest return to value_scale
    n_step_rewards, discounts, last_idx = n_step_targets(data, args.gamma, args.n_step)
    n_step_rewards = scale * n_step_rewards
    bootstrap_observations = data["next_observations"][last_idx]  # s_n: the observation after the last reward
    bootstrap_log_pi_b = log_probs(behavior_ema, bootstrap_observations)

    @accelerate(q_optimizer, args.compile)  # CUDA graph on a GPU, torch.compile on request; the same result
    def q_step(idx, ema_rate):
        obs, bootstrap_obs, p = observations[idx], bootstrap_observations[idx], code_probs[idx]
        with torch.no_grad():
            # Bellman backup of the value alpha * logsumexp(logits); discounts are gamma^n, or 0 after a terminal
            bootstrap_logits = policy_logits(q_target(bootstrap_obs), bootstrap_log_pi_b[idx], args.alpha)
            td_target = n_step_rewards[idx] + discounts[idx] * args.alpha * bootstrap_logits.logsumexp(1)
        q_values = q(obs)
        loss = td_loss(q_values, td_target, p)
        minimize(loss, q_optimizer)  # zero_grad, backward, step
        soft_update(q_target, q, args.tau)
        soft_update(q_ema, q, ema_rate)
        return {"loss": loss, "q_values": (p * q_values).sum(1).mean()}

    def policy(obs, action_mode, generator):
        logits = policy_logits(q_ema(obs), behavior_ema(obs).log_softmax(1), args.alpha)
        return vqvae.act(obs, logits, action_mode, generator)

    for step in run.steps("rl", args.rl_steps):  # 1, 2, ..., total; a resumed run starts later
        idx = torch.randint(len(actions), (args.batch_size,), generator=generator, device=device)
        ema_rate = max(1 - args.ema_decay, 10 / (9 + step))  # falls from 1, about as 10 / step, to 1 - ema_decay
        metrics = q_step(idx, ema_rate)
        run.log(metrics)
        if step % args.eval_every == 0 and step < args.rl_steps:
            run.evaluate(policy, step, args.eval_episodes)

    return run.finish(
        policy, args.rl_steps, {"q": q_ema, "behavior": behavior_ema}, vqvae=vqvae.evaluate(observations, actions),
        gamma=args.gamma, n_step=args.n_step, reward_scale=scale,
    )  # fmt: skip


# ======================================================================================================================
# The rest is the same in every algorithm file, except that SAQ-BC needs fewer of the defaults that follow from the data
# ======================================================================================================================


def check_ranges(args):
    """Raise ValueError, which tyro reports, if a numeric argument is out of range."""
    can_be_zero = ("alpha", "beta", "value_scale", "weight_decay", "bc_steps", "dead_code_reset_every")
    ranges = {
        **dict.fromkeys(("gamma", "expectile", "tau", "ema_decay"), (0, 1)),
        **dict.fromkeys(can_be_zero, (0, 1e9)),
        "min_log_pi_b": (-1e9, 0),
        "seed": (0, 2**32 - 1),
    }
    for name, value in vars(args).items():
        if type(value) not in (int, float):
            continue
        if name in ranges:
            lowest, highest = ranges[name]
        elif isinstance(value, int):
            lowest, highest = 1, 10**9
        else:
            lowest, highest = 1e-9, 1e9
        if not lowest <= value <= highest:
            raise ValueError(f"{name} must be between {lowest} and {highest}, it is {value}")


def fill_in_defaults(args, data, task):
    """Fill in arguments left at None from the dataset, never from evaluation scores."""
    thousands = 3 * len(data["actions"]) // 20_000  # 0.15 per transition
    steps = 1000 * min(max(thousands, 3), 50)

    # In play data trajectories continue past terminal transitions, which only mark a goal reached by chance.
    is_play_data = ((data["terminals"].diff() < 0) & ~data["ends"][:-1]).any()
    is_single_transitions = data["ends"].all()
    if is_play_data:
        horizon = max(task.max_episode_steps // 4, 1)
    elif is_single_transitions:  # their trajectories' lengths are unknown
        horizon = task.max_episode_steps
    else:
        mean_length = len(data["ends"]) / data["ends"].sum().item()
        horizon = min(mean_length, task.max_episode_steps)

    defaults = {
        "vqvae_steps": steps,
        "bc_steps": steps,
        "rl_steps": steps,
        "gamma": 1 - 1 / horizon,
        "n_step": 1 if is_play_data or is_single_transitions else max(round(horizon / 50), 1),
        "final_eval_episodes": task.eval_episodes,
    }
    # The continuous counterparts, which call this function too, do not have all of these arguments.
    missing = {name: value for name, value in defaults.items() if hasattr(args, name) and getattr(args, name) is None}
    return replace(args, **missing)


def reward_scale(args, data, task):
    """The factor that makes the largest absolute discounted return of the data equal to args.value_scale."""
    if not args.value_scale:
        return 1.0
    returns, _, _ = n_step_targets(data, args.gamma, task.max_episode_steps)
    largest = returns.abs().max().item()
    if data["ends"].all():  # single transitions: assume the mean reward at every step of a trajectory
        largest = max(largest, data["rewards"].mean().abs().item() * task.max_episode_steps)
    return args.value_scale / (largest or 1.0)


def mlp(standardize: Standardize, output_dim: int, args: Args) -> nn.Sequential:
    """Network with two hidden layers. Standardizes observations (B, observation_dim), returns (B, output_dim)."""
    layers = [Standardize(standardize.mean, standardize.std)]
    input_dim = len(standardize.mean)
    for _ in range(2):
        layers.append(nn.Linear(input_dim, args.hidden_dim))
        if args.layer_norm:
            layers.append(nn.LayerNorm(args.hidden_dim))
        layers.append(nn.ReLU(inplace=True))
        input_dim = args.hidden_dim
    layers.append(nn.Linear(input_dim, output_dim))
    return nn.Sequential(*layers).to(standardize.mean.device)


def fail(message):
    """Print one line and exit with code 2, for bad input or an unsuitable machine."""
    print("error:", message, file=sys.stderr)
    raise SystemExit(2)


def prepare_torch(args):
    """Seed PyTorch, set precision and threads, and return the device."""
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: PyTorch finds no GPU; use --device cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    torch.set_flush_denormal(True)  # Adam's moments of dead units become subnormal, which is slow on a CPU
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # more threads help on an idle machine but are several times slower on a busy one
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.compile:
        check_compiler(device)
    return torch.device(device)


def check_compiler(device):
    """Compile a small function, because torch.compile depends on much that a machine can lack."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, no headers, a cache folder without permission to write or execute, ...
        lines = str(error).splitlines()
        reason = next((line for line in lines if "error:" in line), lines[0])
        fail(f"--compile: PyTorch cannot compile here (Debian, Ubuntu: apt-get install g++ python3-dev): {reason}")


def load_task(args, device):
    """The task (environment and scores) and its dataset. Replace this function to use your own.

    Returns:
        task: with env_id, max_episode_steps, eval_episodes, dataset_scores, action_low and action_high (lists, the
            environment's action bounds), evaluate(policy, episodes, seed, video), which returns arrays seeds, returns,
            lengths and scores of the episodes, and print_scores(scores by name).
        data: tensors with one row per transition, in time order: observations, next_observations (N, o), actions (N, a)
            in [-1, 1], rewards, terminals (N,) float32; ends (N,) bool, true at the last row of every trajectory,
            including an unfinished last one.
    """
    import tasks

    try:
        options = {name: getattr(args, name) for name in tasks.OPTIONS}
        task = tasks.make(args.env_id, args.dataset_path, **options)
        if args.capture_video:
            task.check_video()
        data = task.dataset()
    except (tasks.TaskError, OSError) as error:
        fail(error)
    print(task.describe(data))
    return task, {name: torch.from_numpy(column).to(device) for name, column in data.items()}


def load_vqvae(vqvae, path):
    """Give vqvae the weights of another run's vqvae.pt."""
    try:
        vqvae.load_weights(Path(path).expanduser())
    except (ValueError, OSError) as error:
        fail(f"--vqvae-path: {error}")


class Run:
    """A run's folder: args.json, checkpoint.pt, curves for TensorBoard, model.pt, eval.npz, result.json.

    The same command with the same run_dir resumes a killed run, on the CPU bit for bit, since modules, optimizers and
    generator hold the whole state of training. Arguments in can_change, and those of evaluation and outputs, may then
    have other values.
    """

    def __init__(self, algorithm, args, task, data, generator, modules, optimizers, can_change):
        self.algorithm, self.task = algorithm, task
        self.args = replace(args, env_id=task.env_id, device=generator.device.type)  # as resolved
        self.generator, self.modules, self.optimizers = generator, nn.ModuleDict(modules), optimizers
        self.identity = {"algorithm": algorithm, "dataset_checksum": checksum(data), **asdict(self.args)}
        self.steps_done = {}  # by phase
        self.episodes = {}  # of each evaluation, by step
        self.points = []  # of the curves: tag, value, step, time
        self.seconds, self.started = 0.0, time.time()

        name = f"{task.env_id.replace('/', '_')}__{algorithm}__{args.seed}__{time.time_ns()}"
        self.folder = Path(args.run_dir or f"runs/{name}").expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / "lock", timeout=5)
            self.lock.acquire()
        except Timeout:
            fail(f"--run-dir {self.folder}: another process is running there")
        except OSError as error:
            fail(f"--run-dir {self.folder}: {error}")
        if (self.folder / "checkpoint.pt").exists():
            self.load(can_change)
            for events in self.folder.glob("events.out.tfevents.*"):
                events.unlink()  # all points are rewritten from the checkpoint
        self.save()
        write_json(self.folder / "args.json", {"algorithm": algorithm, "args": asdict(self.args), **provenance()})
        if args.track:
            import wandb

            wandb.init(project="saq", name=name, dir=self.folder, config=asdict(self.args), sync_tensorboard=True)
        self.writer = SummaryWriter(self.folder)
        for point in self.points:
            self.writer.add_scalar(*point)
        print("writing to", self.folder)

    def steps(self, phase, total):
        """Yield the remaining steps of a phase, from 1 or where the checkpoint stopped, to total. Saves checkpoints.

        On Ctrl-C the run finishes the step, and the evaluation that follows it, saves and exits. A second Ctrl-C ends
        it at once.
        """
        done = self.steps_done.get(phase, 0)
        self.phase, self.total = phase, total
        self.steps_before = sum(self.steps_done.values()) - done
        self.logged_step, self.logged_time = done, time.time()
        self.bar = tqdm(range(done + 1, total + 1), phase, total, initial=done, leave=False, disable=None)

        interrupted = False

        def interrupt(*_):
            nonlocal interrupted
            interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        earlier_handler = signal.signal(signal.SIGINT, interrupt)
        try:
            for step in self.bar:
                self.step = step
                yield step
                self.steps_done[phase] = step
                if step % self.args.checkpoint_every == 0 or step == total or interrupted:
                    self.save()
                if interrupted:
                    self.exit_resumable()
        finally:
            signal.signal(signal.SIGINT, earlier_handler)

    def log(self, metrics):
        """Add a step's metrics (scalars by name) to the curves, every 500 steps and after the last."""
        if self.step % 500 and self.step != self.total:
            return
        values = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(list(values.values())).all():
            fail(f"{self.phase} has diverged by step {self.step}: {values}; try a lower --learning-rate")
        for name, value in values.items():
            self.add_point(f"{self.phase}/{name}", value, self.step)
        speed = (self.step - self.logged_step) / (time.time() - self.logged_time)
        self.add_point("charts/SPS", speed, self.steps_before + self.step)
        self.logged_step, self.logged_time = self.step, time.time()

        self.bar.set_postfix(values)
        tenth = 500 * max(self.total // 5000, 1)  # of the phase, in multiples of 500
        if self.bar.disable and (self.step % tenth == 0 or self.step == self.total):
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            seconds_left = (self.total - self.step) / speed
            print(f"{self.phase} {self.step}/{self.total}: {text}; {seconds_left:.0f} s left", flush=True)

    def add_point(self, tag, value, step):
        point = (tag, value, step, time.time())
        self.points.append(point)
        self.writer.add_scalar(*point)

    def exit_resumable(self):
        """Print the command that resumes the run, and exit."""
        command = f"python {shlex.join(sys.argv)}"
        if not self.args.run_dir:
            command += f" --run-dir {shlex.quote(str(self.folder))}"
        print(f"\ninterrupted; to continue: {command}", file=sys.stderr)
        raise SystemExit(130)

    def save(self):
        """Write the checkpoint."""
        state = {
            "identity": self.identity,
            "modules": self.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "steps_done": self.steps_done,
            "episodes": self.episodes,
            "points": self.points,
            "seconds": self.seconds + time.time() - self.started,
        }
        replace_file(self.folder / "checkpoint.pt", lambda file: torch.save(state, file))

    def load(self, can_change):
        """Resume from the checkpoint, if it is from the same algorithm, data and arguments."""
        try:
            state = torch.load(self.folder / "checkpoint.pt", map_location="cpu", weights_only=True)
            identity = state["identity"]
        except Exception as error:  # a damaged file fails in many ways
            fail(f"{self.folder}/checkpoint.pt is damaged ({error!r:.200}); remove the folder to start over")
        can_change = can_change | {
            "dataset_path", "run_dir", "compile", "action_mode", "eval_every", "eval_episodes", "final_eval_episodes",
            "capture_video", "checkpoint_every", "track",
        }  # fmt: skip
        changed = []
        for name, value in self.identity.items():
            if name not in can_change and identity.get(name) != value:
                changed.append(f"{name} {identity.get(name)} (now {value})")
        for phase, done in state["steps_done"].items():
            if done > getattr(self.args, f"{phase}_steps"):
                changed.append(f"{phase}_steps, of which {done} are done")
        if changed:
            fail(
                f"the run in {self.folder} was started with other settings: {', '.join(changed)}; use another --run-dir"
            )
        self.modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.steps_done, self.episodes, self.points = state["steps_done"], state["episodes"], state["points"]
        self.seconds = state["seconds"]

    def evaluate(self, policy, step, episodes, video=None):
        """Evaluate policy(observations, action_mode, generator): episodes go to eval.npz, their means to the curves."""
        started = time.time()
        generator = torch.Generator(self.generator.device).manual_seed(self.args.seed)

        @torch.no_grad()
        def act(observations):
            obs = torch.as_tensor(observations, dtype=torch.float32, device=generator.device)
            return policy(obs, self.args.action_mode, generator).cpu().numpy()

        result = self.task.evaluate(act, episodes, self.args.seed, video)
        if step not in self.episodes:  # a finished run that is evaluated again has its points already
            self.add_point("eval/normalized_score", result["scores"].mean().item(), step)
            self.add_point("eval/episodic_return", result["returns"].mean().item(), step)
            self.add_point("eval/episodic_length", result["lengths"].mean().item(), step)
        self.episodes[step] = {name: values.tolist() for name, values in result.items()}
        self.episodes[step]["step"] = [step] * len(result["scores"])
        columns = {name: np.concatenate([e[name] for e in self.episodes.values()]) for name in self.episodes[step]}
        replace_file(self.folder / "eval.npz", lambda file: np.savez(file, **columns))
        self.logged_time += time.time() - started  # SPS is the speed of training
        return result["scores"].tolist()

    def finish(self, policy, step, modules, **summary):
        """Write model.pt, evaluate the policy, write result.json, including summary, and return its content."""
        model = {
            "algorithm": self.algorithm,
            "args": asdict(self.args),
            "action_low": self.task.action_low,
            "action_high": self.task.action_high,
        }
        for name, module in modules.items():
            model[name] = module.state_dict()
        replace_file(self.folder / "model.pt", lambda file: torch.save(model, file))

        video = self.folder / "video.gif" if self.args.capture_video else None
        try:
            scores = self.evaluate(policy, step, self.args.final_eval_episodes, video)
        except KeyboardInterrupt:
            self.exit_resumable()
        self.save()
        wall_clock_seconds = self.seconds + time.time() - self.started
        result = {
            "env_id": self.args.env_id,
            "algorithm": self.algorithm,
            "seed": self.args.seed,
            "sparse_rewards": self.args.sparse_rewards,
            "action_mode": self.args.action_mode,
            "normalized_score": np.mean(scores),
            "normalized_scores": scores,
            "dataset_normalized_return": np.mean(self.task.dataset_scores),
            "total_steps": step,
            "wall_clock_seconds": wall_clock_seconds,
            **summary,
        }
        write_json(self.folder / "result.json", result)
        self.task.print_scores({f"{self.algorithm.replace('_', '-').upper()}, {self.args.action_mode}": scores})
        print(f"{wall_clock_seconds:.0f} seconds; results in {self.folder}")
        self.writer.close()
        self.lock.release()
        return result


def checksum(data):
    crc = 0
    for column in data.values():
        crc = zlib.crc32(column.cpu().numpy(), crc)
    return crc


def provenance():
    """The command, the commit of the code, the versions of packages that matter, and the machine."""
    versions = {}
    for package in ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "ogbench", "robosuite"):
        try:
            versions[package] = importlib.metadata.version(package)
        except Exception:  # it is not installed, or its metadata are damaged
            continue
    try:
        git = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""  # no git
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"  # the CPU's kernels
    return {"command": sys.argv, "git_commit": commit, "versions": versions, "machine": machine}


def write_json(path, values):
    replace_file(path, lambda file: file.write(json.dumps(values, indent=2).encode()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
