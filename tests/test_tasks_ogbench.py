"""OGBench's single tasks against the package's own reader, registration and environments; invalid files."""

import http.server
import os
import re
import shutil
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest

import tasks
from tasks.ogbench import DATASETS, MIRROR, OGBench

ogbench = pytest.importorskip("ogbench")

CUBE = "cube-single-play-singletask-v0"


def goal(env_id=CUBE):
    """The goal of the cube in the environment."""
    env = ogbench.make_env_and_datasets(env_id, env_only=True)
    env.reset()
    position = env.unwrapped._data.mocap_pos[0].copy()
    env.close()
    return position


def play(trajectories=3, length=8, **replaced):
    """Rows of cube-single play. In the second trajectory the cube is at the goal in rows 3 and 4."""
    rng, count = np.random.default_rng(0), trajectories * length
    rows = {
        "observations": rng.normal(size=(count, 28)),
        "actions": rng.uniform(-0.9, 0.9, (count, 5)),
        "terminals": np.arange(count) % length == length - 1,
        "qpos": rng.normal(size=(count, 21)) + 9,
        "qvel": rng.normal(size=(count, 20)),
    } | replaced
    if count > length and "qpos" not in replaced:
        rows["qpos"][[length + 3, length + 4], 14:17] = goal()
    return rows


def write(path, rows):
    np.savez_compressed(path, **rows)
    return path


def load(path, env_id=CUBE):
    task = tasks.make(env_id, str(path))
    return task, task.dataset()


def test_ids_match_the_packages_registration():
    """Each of the 47 published datasets with vector observations, with its default task and five numbered ones."""
    suffixes = ("", *(f"-task{number}" for number in range(1, 6)))
    registered = {name for name in gym.registry if "-singletask" in name and not name.startswith("visual-")}
    assert {f"{env}-singletask{suffix}-v0" for env in DATASETS for suffix in suffixes} == registered
    assert sum(map(len, DATASETS.values())) == 47
    assert len(OGBench.IDS) == len(set(OGBench.IDS)) == 47 * 6
    assert all(OGBench.matches(env_id, None) for env_id in OGBench.IDS)
    for env_id in ("cube-single-play-singletask-task6-v0", "cube-single-play-v0", "visual-scene-play-singletask-v0"):
        assert not OGBench.matches(env_id, None)


def test_files_are_in_the_packages_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("OGBENCH_DATASET_DIR", raising=False)
    path, url = tasks.locate("puzzle-3x3-noisy-singletask-task4-v0")
    assert str(path).endswith(".ogbench/data/puzzle-3x3-noisy-v0.npz")
    assert url == f"{ogbench.utils.DATASET_URL}/puzzle-3x3-noisy-v0.npz"
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path))
    write(tmp_path / "cube-single-play-v0.npz", play())
    assert tasks.make(CUBE).path == tmp_path / "cube-single-play-v0.npz"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body`. `works` is whether it answers, None: only questions about sizes."""

    body, works = b"", True

    def do_HEAD(self):
        self.send_response(404 if self.works is False else 200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self):
        if not self.works:
            return self.send_error(503)
        self.do_HEAD()
        self.wfile.write(self.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Stand-ins for OGBench's server and for the client of the mirror, whose copies lie in tmp_path / "mirror"."""
    hub = pytest.importorskip("huggingface_hub")
    mirror = tmp_path / "mirror"
    mirror.mkdir()

    def download_copy(repository, name, repo_type, local_dir):
        assert (repository, repo_type) == (MIRROR, "dataset")
        return shutil.copy(mirror / name, local_dir)

    monkeypatch.setattr(hub, "list_repo_files", lambda repository, repo_type: os.listdir(mirror))
    monkeypatch.setattr(hub, "hf_hub_download", download_copy)
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path / "data"))
    Server.body, Server.works = write(tmp_path / "source.npz", play()).read_bytes(), True
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr("tasks.ogbench.SERVER", f"http://127.0.0.1:{running.server_port}")
        yield mirror
        running.shutdown()


def test_a_missing_dataset_is_downloaded_from_the_server(tmp_path, servers):
    assert len(tasks.make(CUBE).dataset()["ends"]) == 21
    assert os.listdir(tmp_path / "data") == ["cube-single-play-v0.npz"]


@pytest.mark.parametrize("server_works", [False, None])
def test_without_the_server_the_mirrors_copy_is_used(tmp_path, servers, server_works):
    Server.works = server_works
    (servers / "cube-single-play-v0.npz").write_bytes(Server.body)
    assert len(tasks.make(CUBE).dataset()["ends"]) == 21
    assert os.listdir(tmp_path / "data") == ["cube-single-play-v0.npz"]


@pytest.mark.parametrize("kind", ["missing", "other size", "damaged"])
def test_a_failed_download_names_both_places_and_leaves_nothing(tmp_path, servers, kind):
    Server.works = None
    copy = bytearray(Server.body)
    if kind == "other size":
        copy = write(tmp_path / "other.npz", play(4)).read_bytes()
    elif kind == "damaged":
        copy[500:600] = bytes(100)
    if kind != "missing":
        (servers / "cube-single-play-v0.npz").write_bytes(copy)
    with pytest.raises(tasks.TaskError) as raised:
        tasks.make(CUBE)
    message = str(raised.value)
    for words in (
        f"{tasks.locate(CUBE)[1]} (",
        f"huggingface.co/datasets/{MIRROR}",
        f"download it manually to {tmp_path}",
    ):
        assert words in message
    assert "\n" not in message and ("the original" in message) == (kind == "other size")
    assert os.listdir(tmp_path / "data") == []


def test_sparse_rewards_are_minus_1_until_everything_is_solved(tmp_path):
    """As `--sparse` of QC: -1 where the package's reward is not 0. Puzzles have a reward for each of their buttons."""
    rows = play(observations=np.zeros((24, 55)), qpos=np.zeros((24, 14)), qvel=np.zeros((24, 14)))
    rows["button_states"] = np.random.default_rng(0).integers(0, 2, (24, 9))
    env = ogbench.make_env_and_datasets("puzzle-3x3-play-singletask-v0", env_only=True)
    env.reset()
    rows["button_states"][[10, 11]] = env.unwrapped._target_button_states
    path = write(tmp_path / "data.npz", rows)
    usual, sparse = (tasks.make("puzzle-3x3-play-singletask-v0", path, sparse_rewards=flag) for flag in (False, True))
    data, sparse_data = usual.dataset(), sparse.dataset()
    assert len(np.unique(data["rewards"])) > 2 and (data["rewards"] == 0).sum() >= 2
    np.testing.assert_array_equal(sparse_data.pop("rewards"), np.where(data["rewards"] == 0, 0, -1))
    for key, values in sparse_data.items():
        np.testing.assert_array_equal(values, data[key])


@pytest.mark.parametrize("env_id", [CUBE, "cube-single-play-singletask-task4-v0"])
def test_transitions_rewards_and_masks_match_the_packages_reader(tmp_path, env_id):
    path = write(tmp_path / "data.npz", play())
    write(tmp_path / "data-val.npz", play(1))
    task, data = load(path, env_id)
    _, expected, _ = ogbench.make_env_and_datasets(env_id, dataset_path=str(path))
    for key in ("observations", "next_observations", "actions", "rewards"):
        np.testing.assert_array_equal(data[key], expected[key])
    np.testing.assert_array_equal(data["terminals"], 1 - expected["masks"])
    np.testing.assert_array_equal(data["ends"], expected["terminals"])
    if env_id == CUBE:  # the second trajectory reaches the goal and continues
        assert np.flatnonzero(data["terminals"]).tolist() == [10, 11]
        assert np.flatnonzero(data["ends"]).tolist() == [6, 13, 20]
        assert task.dataset_scores.tolist() == [0.0, 100.0, 0.0]
        assert set(data["rewards"].tolist()) == {-1.0, 0.0}


def test_the_environment_has_the_packages_limit_and_ends_at_success(tmp_path):
    path = write(tmp_path / "data.npz", play())
    task = tasks.make(CUBE, path)
    assert (task.max_episode_steps, task.eval_episodes) == (200, 100)
    assert task.score(np.array([0.0, 1.0])).tolist() == [0.0, 100.0]
    assert tasks.make("puzzle-4x5-play-singletask-v0", path).max_episode_steps == 1000
    task.max_episode_steps = 5
    env = task.env()
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(first, env.reset(seed=0)[0])
    assert [env.step(np.zeros(5))[1:4] for _ in range(5)] == [(0.0, False, False)] * 4 + [(0.0, False, True)]
    env.reset(seed=0)
    cube = env.unwrapped._data.joint("object_joint_0")
    cube.qpos[:3] = env.unwrapped._data.mocap_pos[0]
    steps = [env.step(np.zeros(5)) for _ in range(2)]
    assert steps[-1][1:3] == (1.0, True) and steps[-1][4]["success"]


def test_evaluations_are_equal_with_one_seed_and_differ_with_two(tmp_path):
    task = tasks.make(CUBE, write(tmp_path / "data.npz", play()), max_episode_steps=4)
    weights, starts = np.random.default_rng(0).normal(size=(28, 5)), []

    def evaluate(seed):
        starts.clear()
        result = task.evaluate(lambda observations: starts.append(observations) or observations @ weights, 3, seed)
        assert result["lengths"].tolist() == [4, 4, 4]
        return np.stack(starts)

    first = evaluate(1)
    np.testing.assert_array_equal(first, evaluate(1))
    assert (np.abs(first - evaluate(-1)).max(2) > 1e-3).all()  # below 0, which the environment itself refuses


def test_the_seeds_decide_the_starts_in_a_maze(tmp_path):
    """OGBench's mazes draw them from numpy's global generator, which every process of an evaluation inherits."""
    task = tasks.make("pointmaze-medium-navigate-singletask-v0", write(tmp_path / "data.npz", play()))
    task.max_episode_steps = 1

    def starts():
        seen = []
        task.evaluate(lambda observations: seen.append(observations) or np.zeros((len(observations), 2)), 3)
        return seen[0]

    first = starts()
    assert len(np.unique(first, axis=0)) == 3
    np.random.random(5)  # noqa: NPY002
    np.testing.assert_array_equal(first, starts())
    env = task.env()
    np.testing.assert_array_equal(first[1], env.reset(seed=10_001)[0].astype(np.float32))


def changed(key, change):
    rows = play()
    rows[key] = change(rows[key])
    return rows


INVALID_FILES = {
    "terminals are 1 at the last row": changed("terminals", np.zeros_like),
    "KeyError('qpos')": {key: values for key, values in play().items() if key != "qpos"},
    "actions is not a file": {key: values for key, values in play().items() if key != "actions"},
    "actions has a NaN": changed("actions", lambda values: np.where(np.arange(24)[:, None] == 2, np.nan, values)),
    "ends is 0.5": changed("terminals", lambda values: np.where(np.arange(24) == 3, 0.5, values)),
    "observations have shape (27,)": changed("observations", lambda values: values[:, 1:]),
    "IndexError": changed("actions", lambda values: values[1:]),
    "allow_pickle": changed("actions", lambda values: values.astype(object)),
}


@pytest.mark.parametrize("message", INVALID_FILES)
def test_invalid_files_raise_an_error_that_names_the_file(tmp_path, message):
    path = write(tmp_path / "data.npz", INVALID_FILES[message])
    with pytest.raises(tasks.TaskError, match=re.escape(message)) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_the_kind_of_data_in_the_id_may_be_any_word_with_a_file(tmp_path):
    path = write(tmp_path / "data.npz", play())
    assert tasks.make("cube-single-mine-singletask-task2-v0", path).max_episode_steps == 200
    with pytest.raises(tasks.TaskError, match="unknown id cupe-single-play-singletask-v0"):
        tasks.make(CUBE.replace("cube", "cupe"), path)


def test_without_the_package_the_error_has_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(tasks.TaskError, match=r"pip install ogbench==1\.2\.2"):
        tasks.make(CUBE, write(tmp_path / "data.npz", play()))
