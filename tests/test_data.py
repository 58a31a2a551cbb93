"""The loader against D4RL's rule and tables, Adroit's rewards against the formulas, downloads, bad files."""

import ast
import http.server
import runpy
import subprocess
import sys
import threading
import zipfile

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT

from saq_cql import D4RL_SERVER, TASKS, Args, download, evaluate, find_task, load_dataset, make_env, normalized_score

CPU = torch.device("cpu")
HOPPER = "hopper-medium-v2"
DEMO = "fetch-pick-and-place-demo-v0"


def hopper_rows(count=20, **replaced):
    rng = np.random.default_rng(0)
    rows = {
        "observations": rng.normal(size=(count, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": np.zeros(count, bool),
        "timeouts": np.zeros(count, bool),
    }
    return rows | replaced


def write(path, rows):
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            if values is not None:
                file[key] = values
    return path


def load(path, env_id=HOPPER, **args):
    task = find_task(Args(env_id=env_id, dataset_path=path and str(path), **args))
    return load_dataset(task, make_env(task), CPU)


def d4rl_rule(rows, max_steps):
    """What d4rl's qlearning_dataset documents, spelled out: kept rows and which of them are terminal."""
    kept, episode_step = [], 0
    for row in range(len(rows["rewards"]) - 1):
        final = rows["timeouts"][row] if rows.get("timeouts") is not None else episode_step == max_steps - 1
        if final:
            episode_step = 0
            continue
        if rows["terminals"][row]:
            episode_step = 0
        kept.append(row)
        episode_step += 1
    return kept


def flags(count, *true):
    values = np.zeros(count, bool)
    values[list(true)] = True
    return values


@pytest.mark.parametrize(
    "terminals, timeouts",
    [((), ()), ((4,), (9,)), ((4, 19), ()), ((), (9, 19)), ((9,), (9,)), ((0, 1, 2), (3,)), ((18,), (17, 19))],
)
def test_transitions_follow_d4rls_rule_with_timeouts(tmp_path, terminals, timeouts):
    rows = hopper_rows(terminals=flags(20, *terminals), timeouts=flags(20, *timeouts))
    dataset = load(write(tmp_path / "data.hdf5", rows))
    assert dataset.transitions.tolist() == d4rl_rule(rows, 1000)
    torch.testing.assert_close(dataset.terminals, torch.from_numpy(rows["terminals"].astype(np.float32)))
    np.testing.assert_array_equal(dataset.observations, rows["observations"])
    np.testing.assert_array_equal(dataset.rewards, rows["rewards"])
    np.testing.assert_array_equal(dataset.actions, np.clip(rows["actions"], -0.999, 0.999))


@pytest.mark.parametrize("terminals", [(), (99,), (100, 350), (199, 200, 401), (649,)])
def test_transitions_follow_d4rls_rule_without_timeouts(tmp_path, terminals):
    rng = np.random.default_rng(0)
    rows = {
        "observations": rng.normal(size=(650, 39)),
        "actions": rng.uniform(-1, 1, (650, 28)),
        "rewards": rng.normal(size=650),
        "terminals": flags(650, *terminals),
    }
    dataset = load(write(tmp_path / "data.hdf5", rows), "door-human-v0")
    assert dataset.transitions.tolist() == d4rl_rule(rows, 200)
    assert len(dataset.transitions) < 649


def test_door_human_has_d4rls_counts(shared_datasets, capsys):
    dataset = load(shared_datasets / "door-human-v0.hdf5", "door-human-v0")
    assert len(dataset.transitions) == 6703
    assert dataset.terminals[dataset.transitions].sum() == 24
    assert "6703 transitions, 24 terminal" in capsys.readouterr().out


def test_hopper_scores_as_its_readme_says(shared_datasets):
    dataset = load(shared_datasets / "hopper-medium-expert-sb3-v0.hdf5", "hopper-medium-expert-v2")
    assert normalized_score(TASKS["hopper-medium-expert-v2"], dataset.episode_returns).mean() == pytest.approx(
        62.6, abs=0.3
    )


def test_episode_returns_are_undiscounted_sums_of_whole_episodes(tmp_path):
    rewards = np.arange(20, dtype=np.float32)
    rows = hopper_rows(rewards=rewards, terminals=flags(20, 4), timeouts=flags(20, 12))
    dataset = load(write(tmp_path / "data.hdf5", rows))
    np.testing.assert_allclose(dataset.episode_returns, [rewards[:5].sum(), rewards[5:13].sum()])


def test_actions_slightly_outside_are_clipped_and_counted(tmp_path, capsys):
    rows = hopper_rows()
    rows["actions"][3] = [1.37, 0.0, -1.2]
    rows["actions"][7] = [0.0, 1.01, 0.0]
    dataset = load(write(tmp_path / "data.hdf5", rows))
    assert "2 of 20 actions" in capsys.readouterr().out
    assert dataset.actions.abs().max().item() == pytest.approx(0.999)


def damaged(key, row, value):
    rows = hopper_rows()
    rows[key][row] = value
    return rows


BAD_ROWS = {
    "lacks the key 'rewards'": hopper_rows(rewards=None),
    "rewards has 19 rows": hopper_rows(rewards=np.zeros(19, np.float32)),
    "timeouts has 25 rows": hopper_rows(timeouts=np.zeros(25, bool)),
    "rewards has 60 rows": hopper_rows(rewards=np.zeros((20, 3), np.float32)),
    "observations has a NaN or an infinity in row 5": damaged("observations", 5, np.nan),
    "rewards has a NaN or an infinity in row 0": damaged("rewards", 0, np.inf),
    "no transition": hopper_rows(0),
    "shape (2,)": hopper_rows(actions=np.zeros((20, 2), np.float32)),
    "shape (10,)": hopper_rows(observations=np.zeros((20, 10), np.float32)),
    "beyond twice the action space": damaged("actions", 2, 2.5),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_bad_rows_end_with_one_line_and_code_2(tmp_path, capsys, message):
    path = write(tmp_path / "data.hdf5", BAD_ROWS[message])
    with pytest.raises(SystemExit) as stop:
        load(path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error and str(path) in error


@pytest.mark.parametrize("kind", ["missing", "directory", "text", "truncated", "group"])
def test_unreadable_files_end_with_one_line_and_code_2(tmp_path, capsys, kind):
    path = tmp_path / "data.hdf5"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("observations,actions\n")
    elif kind == "truncated":
        write(path, hopper_rows(5000))
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "group":
        with h5py.File(path, "w") as file:
            for key in ("observations", "actions", "rewards", "terminals"):
                file.create_group(key)
    with pytest.raises(SystemExit) as stop:
        load(path)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body`, and closes the connection after `sent` of its bytes."""

    body, sent = b"", 0

    def do_GET(self):
        self.send_response(200 if self.body else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body[: self.sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/hopper_medium-v2.hdf5"
        running.shutdown()


def test_a_missing_dataset_is_downloaded_once_to_d4rls_folder(tmp_path, monkeypatch, server):
    Server.body = write(tmp_path / "source.hdf5", hopper_rows(300)).read_bytes()
    Server.sent = len(Server.body)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(TASKS, HOPPER, TASKS[HOPPER]._replace(url=server))
    for _ in range(2):
        dataset = load(None)
        assert len(dataset.transitions) == 299
        Server.body = b""  # the second time it has to be there
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["hopper_medium-v2.hdf5"]


@pytest.mark.parametrize("kind", ["cut", "not HDF5", "404", "refused"])
def test_a_failed_download_leaves_nothing_behind(tmp_path, capsys, server, kind):
    Server.body = {"404": b"", "not HDF5": b"<html>" * 100}.get(kind, bytes(5_000_000))
    Server.sent = len(Server.body) // 2 if kind == "cut" else len(Server.body)
    url = "http://127.0.0.1:9/x.hdf5" if kind == "refused" else server
    target = tmp_path / "cache" / "hopper_medium-v2.hdf5"
    with pytest.raises(SystemExit) as stop:
        download(url, target)
    assert stop.value.code == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("error: cannot download") and str(target) in last_line
    assert list(target.parent.iterdir()) == []


def test_ids_urls_scores_and_limits_are_the_d4rl_wheels_own(tmp_path):
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "d4rl==1.1"]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("the d4rl wheel cannot be had")
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path)
    infos = runpy.run_path(str(tmp_path / "d4rl" / "infos.py"))
    hands = ast.parse((tmp_path / "d4rl" / "hand_manipulation_suite" / "__init__.py").read_text())
    assigned = {node.targets[0].id: node.value for node in hands.body if isinstance(node, ast.Assign)}
    limits = ast.literal_eval(assigned["MAX_STEPS"])
    d4rl_ids = [env_id for env_id, task in TASKS.items() if (task.url or "").startswith(D4RL_SERVER)]
    assert len(d4rl_ids) == 3 * 6 + 4 * 3 * 2
    for env_id in d4rl_ids:
        task = TASKS[env_id]
        assert task.url == infos["DATASET_URLS"][env_id]
        assert task.min_return == infos["REF_MIN_SCORE"][env_id]
        assert task.max_return == infos["REF_MAX_SCORE"][env_id]
        assert task.max_steps == limits.get(env_id.split("-")[0], 1000)


def test_normalized_score():
    assert normalized_score(TASKS[HOPPER], np.array([-20.272305, 3234.3])).tolist() == pytest.approx([0.0, 100.0])
    assert normalized_score(TASKS[DEMO], np.array([0.0, 1.0])).tolist() == [0.0, 100.0]


@pytest.mark.parametrize("name", ["door", "hammer", "relocate", "pen"])
def test_adroit_rewards_and_endings_are_d4rls(name):
    """The formulas of d4rl's hand_manipulation_suite, evaluated on the simulator's own state."""
    env = make_env(TASKS[f"{name}-human-v0"])
    hand, norm = env.unwrapped, np.linalg.norm
    model, data = hand.model, hand.data

    def site(key):
        return data.site_xpos[model.site(key).id]

    def formula():
        if name == "door":
            hinge = data.qpos[hand.door_hinge_addrs]
            reward = -0.1 * norm(site("S_grasp") - site("S_handle")) - 0.1 * (hinge - 1.57) ** 2
            reward -= 1e-5 * (data.qvel**2).sum()
            return reward + 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        if name == "hammer":
            hammer, palm, head = data.xpos[model.body("Object").id], site("S_grasp"), site("tool")
            depth = norm(site("S_target") - site("nail_goal"))
            reward = -0.1 * norm(palm - hammer) - norm(head - site("S_target")) - 10 * depth
            reward -= 1e-2 * norm(data.qvel)
            return reward + 2 * (hammer[2] > 0.04 and head[2] > 0.04) + 25 * (depth < 0.02) + 75 * (depth < 0.01)
        if name == "relocate":
            ball, palm, target = data.xpos[model.body("Object").id], site("S_grasp"), site("target")
            reward = -0.1 * norm(palm - ball)
            if ball[2] > 0.04:
                reward += 1.0 - 0.5 * norm(palm - target) - 0.5 * norm(ball - target)
            return reward + 10 * (norm(ball - target) < 0.1) + 20 * (norm(ball - target) < 0.05)
        pen, wanted = data.xpos[model.body("Object").id], site("eps_ball")
        axis = (site("object_top") - site("object_bottom")) / hand.pen_length
        goal = (site("target_top") - site("target_bottom")) / hand.tar_length
        distance, similarity = norm(pen - wanted), axis @ goal
        reward = similarity - distance + 10 * (distance < 0.075 and similarity > 0.9)
        return reward + 50 * (distance < 0.075 and similarity > 0.95) - 5 * (pen[2] < 0.075)

    rng, fallen = np.random.default_rng(0), 0
    for seed in range(3):
        env.reset(seed=seed)
        steps = 0
        while steps < TASKS[f"{name}-human-v0"].max_steps:
            steps += 1
            _, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
            assert reward == pytest.approx(formula(), abs=1e-6)
            assert terminated == (name == "pen" and data.xpos[model.body("Object").id][2] < 0.075)
            fallen += terminated
            if terminated:
                break
            assert truncated == (steps == TASKS[f"{name}-human-v0"].max_steps)
    assert fallen > 0 or name != "pen"


def test_the_demo_environment_ends_at_success_with_reward_1():
    sys.path.insert(0, str(ROOT / "demo"))
    from collect import Operator

    env = make_env(TASKS[DEMO])
    successes = 0
    for seed in range(5):
        operator = Operator(np.random.default_rng(seed), careful=True)
        observation, _ = env.reset(seed=seed)
        terminated, truncated, steps = False, False, 0
        while not (terminated or truncated):
            steps += 1
            observation, reward, terminated, truncated, info = env.step(operator.act(observation))
            assert env.observation_space.contains(observation)
            assert (reward, terminated) == (float(info["is_success"]), bool(info["is_success"]))
        assert terminated or steps == 50
        successes += terminated
    assert successes >= 4


def test_the_demo_dataset_is_what_the_readme_says(capsys):
    dataset = load(None, DEMO)
    assert len(dataset.episode_returns) == 600
    assert 0.45 < dataset.episode_returns.mean() < 0.6
    assert set(np.unique(dataset.rewards)) == {0.0, 1.0}
    torch.testing.assert_close(dataset.rewards, dataset.terminals)


@pytest.mark.parametrize("episodes", [1, 3, 10, 11, 25])
def test_evaluation_runs_every_episode_once_from_its_own_seed(episodes):
    """Against one environment that runs the episodes one after the other; they end after different numbers of steps."""
    weights = torch.randn(11, 3)

    def policy(observations, generator):
        return torch.tanh(observations @ weights)

    result = evaluate(TASKS[HOPPER], policy, episodes, 2, CPU)
    env = make_env(TASKS[HOPPER])
    for i in range(episodes):
        observation, _ = env.reset(seed=20_000 + i)
        total, steps, ended = 0.0, 0, False
        while not ended:
            action = policy(torch.as_tensor(observation, dtype=torch.float32)[None], None)[0].numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, ended = total + reward, steps + 1, terminated or truncated
        assert (result.seeds[i], result.lengths[i]) == (20_000 + i, steps)
        assert result.returns[i] == pytest.approx(total, rel=1e-4)
    assert len(result.scores) == episodes
    assert episodes < 10 or len(set(result.lengths.tolist())) > 1


def test_actions_of_a_space_without_zero_are_not_taken_for_strays(tmp_path):
    task = find_task(Args(env_id=HOPPER, dataset_path=str(write(tmp_path / "data.hdf5", hopper_rows()))))
    env = make_env(task)
    env.action_space = gym.spaces.Box(-3.0, -0.9, (3,))
    env.action_space.low[0] = -np.inf
    dataset = load_dataset(task, env, CPU)
    assert dataset.actions.isfinite().all() and dataset.actions.max() <= -0.89
