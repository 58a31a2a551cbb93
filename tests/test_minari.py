"""Minari datasets, collected here with Minari's own collector on real environments, against Minari's own episodes."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import ALGORITHMS, ROOT

from saq_cql import Args, evaluate, find_task, load_dataset, make_env, normalized_score

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder of datasets by random policies: FrankaKitchen, an AntMaze, Hopper, a pendulum without step limit."""
    minari = pytest.importorskip("minari")
    pytest.importorskip("jax")
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)
    folder, patch = tmp_path_factory.mktemp("minari"), pytest.MonkeyPatch()
    patch.setenv("MINARI_DATASETS_PATH", str(folder))
    warnings.simplefilter("ignore")  # Minari would like to know author and code; pytest restores the filters

    def collect(dataset_id, env, episodes, steps, **kwargs):
        rng, env = np.random.default_rng(0), minari.DataCollector(env)
        for seed in range(episodes):
            env.reset(seed=seed)
            for _ in range(steps):
                space = env.action_space
                action = rng.uniform(space.low, space.high).astype(space.dtype) if hasattr(space, "low") else 0
                if any(env.step(action)[2:4]):
                    break
        env.create_dataset(dataset_id, algorithm_name="random", author="test", **kwargs)
        env.close()

    tasks = {"tasks_to_complete": ["microwave", "kettle"]}
    kitchen, evaluated = (gym.make("FrankaKitchen-v1", **tasks, max_episode_steps=steps) for steps in (30, 20))
    collect("test/kitchen/random-v0", kitchen, 4, 30, eval_env=evaluated, ref_min_score=0.0, ref_max_score=2.0)
    collect("test/antmaze/random-v1", gym.make("AntMaze_UMaze-v5", max_episode_steps=40), 3, 100)
    collect("hopper-random-v0", gym.make("Hopper-v5"), 12, 15)
    collect("test/endless-v0", gym.make("Pendulum-v1", max_episode_steps=-1), 2, 25)
    collect("test/discrete-v0", gym.make("CartPole-v1"), 1, 5)
    collect("test/cut-v0", gym.make("Hopper-v5"), 2, 5)
    with h5py.File(folder / "test" / "cut-v0" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
    spec = {"action_space": gym.spaces.Box(0.5, 1.0, (1,)), "observation_space": gym.spaces.Box(-9, 9, (3,))}
    minari.create_dataset_from_buffers("test/empty-v0", [], env="Pendulum-v1", **spec)
    yield folder
    patch.undo()


def load(dataset_id):
    task = find_task(Args(env_id=dataset_id))
    return task, load_dataset(task, make_env(task), CPU)


@pytest.mark.parametrize("dataset_id", ["test/kitchen/random-v0", "test/antmaze/random-v1", "hopper-random-v0"])
def test_transitions_are_minaris_own(datasets, dataset_id):
    import minari

    task, dataset = load(dataset_id)
    stored = minari.load_dataset(dataset_id)
    expected, returns = [], []
    for episode in stored.iterate_episodes():
        returns.append(episode.rewards.sum())
        for t in range(len(episode)):
            now, after = (
                gym.spaces.flatten(stored.observation_space, pick(episode.observations, t + i)) for i in (0, 1)
            )
            expected.append((now, episode.actions[t], episode.rewards[t], episode.terminations[t], after))
    rows = dataset.transitions
    assert len(rows) == stored.total_steps == len(expected)
    got = (dataset.observations[rows], dataset.actions[rows], dataset.rewards[rows], dataset.terminals[rows])
    for ours, theirs in zip((*got, dataset.observations[dataset.next_rows]), zip(*expected), strict=True):
        limit = 0.999 if ours is got[1] else np.inf
        np.testing.assert_allclose(ours.numpy(), np.clip(np.array(theirs), -limit, limit), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.episode_returns, returns)
    assert dataset.terminals.sum() == (0 if "hopper" not in dataset_id else sum(e.terminations[-1] for e in stored))
    ours, theirs = make_env(task), stored.recover_environment(eval_env=True)
    theirs.reset(seed=0), ours.reset(seed=0)
    action = ours.action_space.sample()
    expected = gym.spaces.flatten(stored.observation_space, theirs.step(action)[0])
    np.testing.assert_allclose(ours.step(action)[0], expected, atol=1e-6)  # the same entries in the same order


def pick(observations, t):
    """Time step t of an episode's observations, which are an array or a dict of them."""
    if isinstance(observations, dict):
        return {key: pick(values, t) for key, values in observations.items()}
    return observations[t]


def test_hopper_has_terminals_and_time_outs(datasets):
    _, dataset = load("hopper-random-v0")
    ends = dataset.next_rows != dataset.transitions + 1
    terminals = dataset.terminals[dataset.transitions].bool()
    assert len(dataset.episode_returns) == 12
    assert 0 < terminals.sum() < 12 and ends.sum() >= 11  # the last episode's end may come right after it
    assert not (terminals & ~ends)[:-1].any()


def test_scores_refer_to_the_metadata_or_are_returns(datasets):
    task, _ = load("test/kitchen/random-v0")
    assert normalized_score(task, np.array([0.0, 1.0, 2.0])).tolist() == [0.0, 50.0, 100.0]
    task, _ = load("hopper-random-v0")
    assert normalized_score(task, np.array([0.0, 24.0])).tolist() == [0.0, 24.0]


def test_evaluation_is_in_the_datasets_evaluation_environment_and_seeded(datasets):
    task, dataset = load("test/kitchen/random-v0")
    weights = torch.randn(dataset.observations.shape[1], 9)

    def policy(observations, generator):
        return torch.tanh(observations @ weights) + 0.1 * torch.randn(len(observations), 9, generator=generator)

    first, second = (evaluate(task, policy, 3, 1, CPU) for _ in range(2))
    assert first.lengths.tolist() == [20, 20, 20]  # the data: 30
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_environment_without_step_limit_gets_the_longest_episodes(datasets):
    task, _ = load("test/endless-v0")
    env = make_env(task)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(25)] == [False] * 24 + [True]


def run(script, *flags, code=0):
    command = [sys.executable, str(ROOT / f"{script}.py"), "--device=cpu", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dataset_id", ["test/kitchen/random-v0", "test/antmaze/random-v1"])
def test_every_algorithm_trains_and_evaluates(datasets, tmp_path, algorithm, dataset_id):
    flags = ["--vqvae-steps=40", "--total-steps=40", "--hidden-dim=16", "--codebook-size=8", "--final-eval-episodes=2"]
    flags += ["--bc-steps=20"] if algorithm in ("saq_iql", "saq_brac") else []
    done = run(algorithm, *flags, f"--env-id={dataset_id}", "--runs-dir", tmp_path)
    assert done.stderr == ""
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(f"{dataset_id.replace('/', '_')}__{algorithm}__1__")
    result = json.loads((folder / "result.json").read_text())
    assert (result["env_id"], len(result["normalized_scores"])) == (dataset_id, 2)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--env-id=test/discrete-v0"], ["test/discrete-v0", "Discrete(2)", "continuous"]),
        (["--env-id=test/none-v0"], ["test/none-v0", "put it at"]),
        (["--env-id=test/cut-v0"], ["test/cut-v0, episode 1"]),
        (["--env-id=test/empty-v0"], ["test/empty-v0 holds no transition"]),
        (["--env-id=hopper-randon-v0"], ["hopper-randon-v0", "hopper-random-v2"]),
        (["--env-id=hopper-random-v0", "--dataset-path=demo/fetch-pick-and-place-demo-v0.hdf5"], ["is Minari's"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(datasets, monkeypatch, flags, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    error = run("saq_bc", *flags, code=2).stderr
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
