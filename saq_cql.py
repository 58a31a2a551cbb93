"""SAQ-CQL: conservative Q-learning on the codes of a state-conditioned action VQ-VAE.

    codes       p = soft_codes(s, a), computed once per transition: codes near e(s, a) share the probability
    behavior    mean -sum_k p_k log pi_b(k|s)
    target      y = R + gamma^n (1 - terminal) sum_k pi_target(k|s') Q_target(s', k),  R and s' of n steps
    loss        mean sum_k p_k (Q(s, k) - y)^2 - alpha mean sum_k p_k log pi(k|s)
    policy      pi(k|s) = softmax_k (Q(s, k) + log pi_b(k|s)),  acts by sum_k pi(k|s) decode(s, k)

Up to a constant, -log pi(k|s) is CQL's regularizer logsumexp_i (Q(s, i) + log rho(i|s)) - Q(s, k) with rho = pi_b: a
sum of K terms, where continuous CQL samples actions. With the paper's uniform rho (--bc-steps 0) Q also has to imitate.

    Luo et al., *Action-Quantized Offline Reinforcement Learning for Robotic Skill Learning*, CoRL 2023, section 4
    Kumar et al., *Conservative Q-Learning for Offline Reinforcement Learning*, NeurIPS 2020, equations 3 and 4

    python saq_cql.py --env-id hopper-medium-v2    # `python -m tasks` lists the ids; the default is a demo
"""

import copy
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal, NamedTuple, get_type_hints

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during imports and loading ends without a traceback

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from filelock import FileLock
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae import VQVAE, Standardize, ema_weight, follow, gradient_step, minimize, read_file, train_vqvae, write_file

Batch = dict[str, torch.Tensor]  # columns by name, a row a transition
Count, Positive = Annotated[int, (1, np.inf)], Annotated[float, (1e-9, 1e9)]  # with the bounds of parse_args
Fraction, Weight, Auto = Annotated[float, (0, 1)], Annotated[float, (0, 1e9)], Annotated[int | None, (1, np.inf)]


class Data(NamedTuple):
    env_id: str = "fetch-pick-and-place-demo-v0"  # dataset and environment; `python -m tasks` lists the ids
    dataset_path: str | None = None  # file in the layout of D4RL, robomimic or OGBench, instead of the id's own
    dataset_filter: str | None = None  # robomimic files: filter key of the demonstrations to use, such as train
    observation_keys: list[str] | None = None  # robomimic files; default: end effectors, grippers, object
    max_episode_steps: Auto = None  # limit of episodes, also in h and the value scale; default: the benchmark's


class Method(NamedTuple):
    vqvae_steps: Auto = None  # gradient steps of the VQ-VAE; default: 0.15 per transition, 3000 to 50,000
    vqvae_path: str | None = None  # vqvae.pt of a run on the same dataset, instead of training one
    bc_steps: Annotated[int | None, (0, np.inf)] = None  # gradient steps of the behavior policy; default: the same
    total_steps: Auto = None  # gradient steps of Q; default: the same
    batch_size: Count = 256  # transitions per gradient step
    codebook_size: Annotated[int, (1, 8192)] = 64  # K, the number of codes
    hidden_dim: Count = 256  # width of the hidden layers of every network
    learning_rate: Positive = 3e-3  # of every network (the paper: 3e-4)
    weight_decay: Weight = 1e-3  # AdamW's, for Q and behavior policy
    standardize: bool = True  # standardize observations with the dataset's mean and deviation (the paper: raw)
    layer_norm: bool = True  # normalize the hidden layers of every network (the paper: no)
    soft_codes: bool = True  # learn on probabilities of the codes near e(s, a) (the paper: on the nearest code)
    restart_every: Annotated[int, (0, np.inf)] = 500  # steps between restarts of unused codes; 0: never (the paper)
    ema_decay: Fraction = 0.9995  # decay of the averaged weights, which act; 0: last weights (the paper)
    gamma: Annotated[float | None, (0, 1)] = None  # discount; default: 1 - 1/h, h: mean trajectory, play: limit / 4
    n_step: Auto = None  # rewards per target; default: h / 50, 1 in play data (the paper: 1)
    value_scale: Weight = 100.0  # largest discounted return of the data after scaling rewards; 0: no scaling
    alpha: Weight = 4.0  # weight of the conservative regularizer
    backup: Literal["expected", "greedy"] = "expected"  # value of s': the policy's, or the largest Q's (the paper)
    target_period: Count = 20  # gradient steps between copies of Q to its target network (the paper: 200)
    acting: Literal["mean", "greedy", "sampled"] = "mean"  # decode the policy's mean, most probable code, or a sample


class Running(NamedTuple):
    eval_every: Count = 10_000  # gradient steps between evaluations
    eval_episodes: Count = 10  # episodes per evaluation
    final_eval_episodes: Auto = None  # episodes after the last step; default: 100, robosuite 50
    capture_video: bool = False  # write video.gif of the final policy
    seed: Annotated[int, (-(2**63), 2**63 - 1)] = 1  # of networks, batches and evaluation episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # device of networks and dataset; auto: cuda if available
    compile: bool = False  # compile the gradient steps with torch.compile
    runs_dir: str = "runs"  # folder of the runs' folders
    checkpoint_every: Count = 10_000  # gradient steps between checkpoints
    resume: str | None = None  # folder of a run to continue; flags given here replace its own
    track: bool = False  # also log to Weights & Biases


def mlp(standardize: Standardize, outputs: int, hidden_dim: int, layer_norm: bool) -> nn.Sequential:
    """Two hidden layers from observations (B, observation_dim), standardized, to (B, outputs)."""
    layers = [Standardize(standardize.mean, standardize.std)]
    for inputs in (len(standardize.mean), hidden_dim):
        layers += [nn.Linear(inputs, hidden_dim), *[nn.LayerNorm(hidden_dim)] * layer_norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden_dim, outputs))


def cql_loss(q: nn.Module, q_target: nn.Module, batch: Batch, alpha: float, backup: str) -> Batch:
    """Temporal differences plus CQL(rho)'s regularizer (equation 3) with rho = pi_b, exact.

    Args:
        q, q_target: map observations to values (B, K) of the codes.
        batch: `observations`, `next_observations` (B, observation_dim); `returns`, `discounts` (B,); `codes` (B,) int64
            or their probabilities (B, K); `log_pi_b`, `next_log_pi_b` (B, K)
        backup: `expected` value of s' under Q_target's policy, or `greedy` double Q-learning (van Hasselt et al., 2016)

    Returns `loss` to minimize, its parts `td_loss` and `cross_entropy`, and `q_values`, the mean Q of the codes.
    """
    with torch.no_grad():
        next_values = q_target(batch["next_observations"])
        next_pi = (next_values + batch["next_log_pi_b"]).softmax(1)
        if backup == "greedy":
            next_pi = F.one_hot(q(batch["next_observations"]).argmax(1), next_values.shape[1])
        targets = batch["returns"] + batch["discounts"] * (next_pi * next_values).sum(1)
    values = q(batch["observations"])
    p = batch["codes"] if batch["codes"].ndim == 2 else F.one_hot(batch["codes"], values.shape[1])
    td_loss = (p * (values - targets[:, None]).square()).sum(1).mean()
    cross_entropy, q_values = F.cross_entropy(values + batch["log_pi_b"], batch["codes"]), (p * values).sum(1).mean()
    parts = {"td_loss": td_loss.detach(), "cross_entropy": cross_entropy.detach(), "q_values": q_values.detach()}
    return {"loss": td_loss + alpha * cross_entropy, **parts}


def n_step_returns(data: Batch, gamma: float, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The parts of y = R + discount V(s') of every transition, from `rewards`, `terminals` (N,) and `ends` (N,) bool.

    Returns R (N,), the discounted sum of m <= n rewards, as many as its trajectory has; the rows (N,) int64 of the last
    of them, whose next observations are s'; the discounts (N,), gamma^m, or 0 where that row is terminal.
    """
    rewards, continues = data["rewards"], ~data["ends"] & (data["terminals"] == 0)
    returns, discounts, last = rewards, torch.ones_like(rewards), torch.arange(len(rewards), device=rewards.device)
    for _ in range(n - 1):
        if not (going := continues[last]).any():
            break
        last, discounts = last + going, torch.where(going, gamma * discounts, discounts)
        returns = returns + going * discounts * rewards[last]
    return returns, last, gamma * discounts * (1 - data["terminals"][last])


# ---- identical in every algorithm file, from here to __main__: the data, the command line, the run's folder ----------


def load_task(args):
    """Load the dataset and its task, the only use of `tasks` here. For data of your own, set args.env_id and return

    data: a dict of arrays, a row a transition in order of time: `observations`, `next_observations` (N, o), `actions`
        (N, a) in [-1, 1], `rewards`, `terminals` (N,) float32; `ends` (N,) bool, the last row of every trajectory
    task: an object with `max_episode_steps`, `dataset_scores` (E,), `print_scores(scores)`, and `evaluate(policy,
        episodes or None, seed, video)`, which clips actions (B, a) of the policy: arrays `returns`, `lengths`, `scores`
    """
    import tasks

    task = tasks.make(**{name: getattr(args, name) for name in Data._fields}, video=args.capture_video)
    data = task.dataset()
    print(task.describe(data))
    vars(args).update(task.facts)  # env_id, for a robomimic file names its own; what -1 and 1 stand for; checksums
    return data, task


def fail(message):
    print("error:", *str(message).split(), file=sys.stderr)
    raise SystemExit(2)


def parse_args(method):
    """Parse the command line and check bounds. With `--resume RUN`, that run's flags come first."""
    traceback = sys.excepthook  # of other errors than the machine's (a full disk, a folder that cannot be written)
    sys.excepthook = lambda kind, *error: fail(error[0]) if issubclass(kind, OSError) else traceback(kind, *error)
    groups = {"data": Data, "method": method, "running": Running}
    Data.__doc__ = method.__doc__ = Running.__doc__ = None  # or --help shows the signatures that NamedTuple puts there
    config, about = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone), sys.modules["__main__"].__doc__
    read = partial(tyro.cli, NamedTuple("Args", groups.items()), description=about, config=config)
    parts, words = read(), sys.argv[1:]
    if run := parts.running.resume:
        try:
            script, *saved = map(str, json.loads(Path(run, "args.json").read_text())["command"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            fail(f"--resume {run}: not the folder of a run ({error})")
        if Path(script).name != Path(sys.argv[0]).name or getattr(parts.method, "vqvae_path", None):
            fail(f"--resume {run}: it is a run of {script} with a VQ-VAE of its own; leave --vqvae-path out")
        parts, words = read(args=saved + words), saved + words
    args = SimpleNamespace(command=[sys.argv[0], *words])
    for part in parts:
        for name, hint in get_type_hints(type(part), include_extras=True).items():
            setattr(args, name, value := getattr(part, name))
            low, high = getattr(hint, "__metadata__", [(value, value)])[0]
            if value is not None and not low <= value <= high:
                fail(f"--{name.replace('_', '-')} must be between {low:g} and {high:g}, it is {value}")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: this PyTorch sees no GPU; use --device cpu")
    if args.compile and subprocess.getstatusoutput("${CXX:-g++} --version")[0]:
        fail("--compile needs a C++ compiler (Debian, Ubuntu: apt-get install g++)")
    return args


class Run:
    """A run's folder and its loop over steps. `networks`, `optimizers`, `generator` are all that training changes."""

    def __init__(self, args, task, networks, optimizers, generator):
        self.args, self.task, self.start, self.interrupted = args, task, time.time(), None
        self.networks, self.optimizers, self.generator = networks, optimizers, generator
        self.steps_done, self.metrics, self.curves, self.episodes = {}, {}, [], {}
        self.algorithm = Path(sys.argv[0]).name.replace(".py", "").replace(" ", "_")
        name = f"{args.env_id.replace('/', '_')}__{self.algorithm}__{args.seed}__{time.time_ns()}"
        self.folder = Path(args.resume or Path(args.runs_dir, name))
        self.load() if args.resume else self.folder.mkdir(parents=True)
        self.lock = FileLock(self.folder / "lock", timeout=0).acquire()  # an OSError, where another process writes here
        known = {"command": args.command, "versions": {d.name: d.version for d in metadata.distributions()}}
        known["git_commit"] = subprocess.getoutput(f"git -C '{Path(__file__).parent}' rev-parse HEAD 2>/dev/null")
        known["args"] = self.flags = {k: v for k, v in vars(args).items() if k not in ("command", "resume")}
        write_file(self.folder / "args.json", lambda file: file.write(json.dumps(known, indent=2).encode()))
        if args.track:
            about = {"project": "saq", "name": self.folder.name, "dir": self.folder, "config": self.flags}
            try:
                import_module("wandb").init(**about, sync_tensorboard=True)
            except Exception as error:  # not installed, no key, no network
                fail(f"--track: {error}; pip install wandb, then wandb login")
        self.writer = SummaryWriter(self.folder)
        self.save()
        again = f"interrupted; to continue: python {sys.argv[0]} --resume {shlex.quote(str(self.folder))}"
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "interrupted", again))  # no error amid a step or a file
        print(*(f"{k} {v}," for k, v in self.flags.items() if k.endswith("_steps") and v), "writing to", self.folder)

    def save(self):
        states = {"optimizers": [o.state_dict()["state"] for o in self.optimizers], "seconds": time.time() - self.start}
        states |= {"networks": self.networks.state_dict(), "generator": self.generator.get_state()}
        states |= {"dataset": vars(self.args).get("dataset"), "steps_done": self.steps_done, "episodes": self.episodes}
        write_file(self.folder / "checkpoint.pt", partial(torch.save, states))
        while self.curves:  # only now, so that a resumed run writes no step twice
            self.writer.add_scalar(*self.curves.pop(0))
        self.writer.flush()

    def load(self):
        try:
            saved = read_file(self.folder / "checkpoint.pt")
            if saved["dataset"] != vars(self.args).get("dataset"):
                raise ValueError("it is of another dataset")
            self.networks.load_state_dict(saved["networks"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(optimizer.state_dict() | {"state": state})  # at the rates of this command
                [moment.expand_as(weight) for weight, state in optimizer.state.items() for moment in state.values()]
            if len(saved["generator"]) == len(self.generator.get_state()):  # else another device's: draws begin anew
                self.generator.set_state(saved["generator"])
            self.steps_done = {phase: int(steps) for phase, steps in saved["steps_done"].items()}
            self.episodes = {name: list(values) for name, values in saved["episodes"].items()}
            self.start -= saved["seconds"]
        except Exception as error:  # a damaged file fails in many ways
            fail(f"--resume: {self.folder}/checkpoint.pt is damaged or of other networks ({error!r:.200})")

    def steps(self, phase, total, tag):
        """Yield the steps of a phase that are still to do; the loop's body leaves their scalars in `self.metrics`."""
        first, self.since = self.steps_done.get(phase, 0), time.time()  # evaluate moves it: SPS is of training
        last, bar = first, tqdm(range(first + 1, total + 1), phase, total, leave=False, initial=first, disable=None)
        for step in bar:
            yield step
            self.steps_done[phase] = step
            if step % 500 == 0 or step == total:
                values = {name: torch.as_tensor(value).item() for name, value in self.metrics.items()}
                if not np.isfinite([*values.values()]).all():
                    fail(f"{phase} has diverged by step {step}: {values}; try a lower --learning-rate")
                bar.set_postfix(values)
                rate, name = (step - last) / (time.time() - self.since), "SPS" if tag == "losses/" else f"SPS_{phase}"
                self.curves += [(f"charts/{name}", rate, step), *((tag + k, v, step) for k, v in values.items())]
                last, self.since, values["seconds_left"] = step, time.time(), (total - step) / rate
                if bar.disable and (step == 500 or step * 10 // total > (step - 500) * 10 // total or step == total):
                    print(f"{phase} {step}/{total}", *(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
            if step % self.args.checkpoint_every == 0 or step == total or self.interrupted:
                self.save()
            if self.interrupted:
                sys.exit(self.interrupted)

    def evaluate(self, policy, acting, episodes, step=None, video=None):
        """Scores of `policy(observations, acting, generator)`; with a `step` it goes to the curves and eval.npz."""
        generator, start = torch.Generator(self.generator.device).manual_seed(self.args.seed), time.time()

        @torch.no_grad()
        def act(observations):
            if self.interrupted and step in (None, self.args.total_steps):  # an earlier step is saved first
                sys.exit(self.interrupted)
            return policy(torch.as_tensor(observations).float().to(generator.device), acting, generator).cpu().numpy()

        result, self.since = self.task.evaluate(act, episodes, self.args.seed, video), self.since + time.time() - start
        if step is not None:
            for name, values in {"step": np.full(len(result["scores"]), step), **result}.items():
                self.episodes.setdefault(name, []).extend(np.asarray(values).tolist())
            write_file(self.folder / "eval.npz", lambda file: np.savez(file, **self.episodes))
            tags = {"normalized_score": "scores", "episodic_return": "returns", "episodic_length": "lengths"}
            self.curves += [(f"eval/{tag}", np.mean(result[name]), step) for tag, name in tags.items()]
        return np.asarray(result["scores"]).tolist()

    def finish(self, policy, ways, modules, facts):
        """Write model.pt (`modules`), evaluate every way of acting, write result.json (also `facts`) and video.gif."""
        args, trained, scores = self.args, time.time() - self.start, {}
        model = {"args": self.flags} | {name: module.state_dict() for name, module in modules.items()}
        write_file(self.folder / "model.pt", partial(torch.save, model))
        for acting in sorted(ways, key=lambda way: way != args.acting):  # the one that was asked for first
            kept = () if scores else (args.total_steps, args.capture_video and self.folder / "video.gif")
            scores[acting] = self.evaluate(policy, acting, args.final_eval_episodes, *kept)
        for curve in self.curves if self.metrics or not (self.folder / "result.json").exists() else ():
            self.writer.add_scalar(*curve)  # but not once more where a finished run is only evaluated again
        self.writer.close()
        result = {"env_id": args.env_id, "algorithm": self.algorithm, "seed": args.seed, **facts, "scores": scores}
        result |= {"normalized_score": np.mean(scores[args.acting]), "normalized_scores": scores[args.acting]}
        result |= {"dataset_normalized_return": np.mean(self.task.dataset_scores), "total_steps": args.total_steps}
        result |= {"training_seconds": trained, "wall_clock_seconds": time.time() - self.start}
        write_file(self.folder / "result.json", lambda file: file.write(json.dumps(result, indent=2).encode()))
        self.task.print_scores({f"{self.algorithm.replace('_', '-').upper()}, {k}": v for k, v in scores.items()})
        print(f"{result['wall_clock_seconds']:.0f} seconds; all of it in {self.folder}")


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
    observations, actions = data["observations"], data["actions"]
    sizes = args.codebook_size, args.hidden_dim, args.layer_norm
    steps = min(max(3000, len(actions) * 3 // 20_000 * 1000), 50_000)  # of each phase to which no flag gives any
    vars(args).update({k: steps for k in Method._fields if k.endswith("_steps") and getattr(args, k) is None})
    vqvae = VQVAE.for_data(observations, actions, *sizes, args.standardize)
    args.vqvae_steps = 0 if args.vqvae_path else args.vqvae_steps
    if args.vqvae_path and not args.resume:  # a resumed run's is in its checkpoint
        vqvae.load_weights(args.vqvae_path)
    behavior, q = (mlp(vqvae.standardize, *sizes).to(device) for _ in range(2))
    [nn.init.zeros_(parameter) for parameter in behavior[-1].parameters()]  # pi_b is uniform until it is trained
    vqvae_learner, behavior_acting, q_target, q_acting = map(copy.deepcopy, (vqvae, behavior, q, q))
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    vqvae_adam = torch.optim.Adam(vqvae_learner.parameters(), args.learning_rate, fused=True)
    behavior_adam, q_adam = adamw(behavior.parameters()), adamw(q.parameters())
    networks = {"vqvae": vqvae, "vqvae_learner": vqvae_learner, "behavior": behavior, "q": q}
    networks |= {"behavior_acting": behavior_acting, "q_target": q_target, "q_acting": q_acting}
    run = Run(args, task, nn.ModuleDict(networks), [vqvae_adam, behavior_adam, q_adam], generator)

    def policy(seen: torch.Tensor, acting: str, generator: torch.Generator) -> torch.Tensor:
        return vqvae.act(seen, q_acting(seen) + behavior_acting(seen), acting, generator)

    # The codebook, and the code of every action, once.
    settings = {name: getattr(args, name) for name in ("batch_size", "restart_every", "ema_decay", "compile")}
    settings |= dict(learner=(vqvae_learner, vqvae_adam), generator=generator, on_step=partial(setattr, run, "metrics"))
    train_vqvae(vqvae, observations, actions, run.steps("vqvae", args.vqvae_steps, "vqvae/"), **settings)
    vqvae.save(run.folder / "vqvae.pt")
    quality = vqvae.evaluate(observations, actions)
    print(", ".join(f"{name} {value:.4g}" for name, value in quality.items()))
    codes = (vqvae.soft_codes if args.soft_codes else vqvae.encode)(observations, actions)

    # The behavior policy over codes.
    @gradient_step(behavior_adam, generator, len(codes), args.batch_size, args.compile)
    def behavior_step(rows: torch.Tensor, ema: torch.Tensor) -> Batch:
        cross_entropy = F.cross_entropy(behavior(observations[rows]), codes[rows])
        minimize(cross_entropy, behavior_adam)
        follow(behavior_acting, behavior, ema)
        return {"loss": cross_entropy}

    for step in run.steps("bc", args.bc_steps, "losses/bc_"):
        run.metrics = behavior_step(ema_weight(args.ema_decay, step))

    # Conservative Q-learning on the codes. A horizon h, mean trajectory or in play limit / 4, sets gamma and n.
    play = ((data["terminals"].diff() < 0) & ~data["ends"][:-1]).any()  # goes on after goals that it met by accident
    limit = task.max_episode_steps
    h = max(limit // 4, 1) if play else min(len(codes) / data["ends"].sum().item(), limit)
    gamma, n_step = 1 - 1 / h if args.gamma is None else args.gamma, args.n_step or (1 if play else round(h / 50) or 1)
    largest = n_step_returns(data, gamma, limit)[0].abs().max().item()
    scale = args.value_scale / (largest or 1.0) if args.value_scale else 1.0
    returns, last, discounts = n_step_returns(data, gamma, n_step)
    transitions = {"observations": observations, "codes": codes, "returns": scale * returns, "discounts": discounts}
    transitions["next_observations"] = data["next_observations"][last]
    for name, states in (("log_pi_b", observations), ("next_log_pi_b", transitions["next_observations"])):
        table = transitions[name] = torch.empty(len(codes), args.codebook_size, device=device)  # looked up, too
        [t.copy_(behavior_acting(s).log_softmax(1).detach()) for t, s in zip(table.split(16384), states.split(16384))]

    @gradient_step(q_adam, generator, len(codes), args.batch_size, args.compile)
    def q_step(rows: torch.Tensor, ema: torch.Tensor, moved: torch.Tensor) -> Batch:
        metrics = cql_loss(q, q_target, {n: column[rows] for n, column in transitions.items()}, args.alpha, args.backup)
        minimize(metrics["loss"], q_adam)
        follow(q_target, q, moved)
        follow(q_acting, q, ema)
        return metrics

    for step in run.steps("rl", args.total_steps, "losses/"):
        run.metrics = q_step(ema_weight(args.ema_decay, step), step % args.target_period == 0)
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(policy, args.acting, args.eval_episodes, step)

    facts = {"vqvae": quality, "reward_scale": scale, "gamma": gamma, "n_step": n_step}
    if held_out := [torch.from_numpy(column).to(device) for column in getattr(task, "held_out", ())]:
        facts["held_out"] = vqvae.evaluate(*held_out, behavior_acting(held_out[0]).detach())
        print("held out:", ", ".join(f"{name} {value:.4g}" for name, value in facts["held_out"].items()))
    run.finish(policy, ("mean", "greedy", "sampled"), {"q": q_acting, "behavior": behavior_acting}, facts)
