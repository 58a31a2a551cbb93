"""D4RL: files against its rule, its tables, its formulas for Adroit rewards; downloads; invalid files."""

import ast
import http.server
import re
import runpy
import subprocess
import sys
import threading
import zipfile

import h5py
import numpy as np
import pytest

import tasks
from tasks.common import download
from tasks.d4rl import BENCHMARKS
from tasks.d4rl_file import rows_follow

HOPPER = "hopper-medium-v2"


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


def load(path, env_id=HOPPER):
    task = tasks.make(env_id, path and str(path))
    return task, task.dataset()


def d4rl_rule(rows, max_steps):
    """What d4rl's qlearning_dataset documents, spelled out: kept rows, and which of them nothing kept follows."""
    kept, ends, episode_step = [], [], 0
    for row in range(len(rows["rewards"]) - 1):
        final = rows["timeouts"][row] if rows.get("timeouts") is not None else episode_step == max_steps - 1
        if final:
            episode_step = 0
            if ends and kept[-1] == row - 1:
                ends[-1] = True
            continue
        if rows["terminals"][row]:
            episode_step = 0
        kept.append(row)
        ends.append(bool(rows["terminals"][row]))
        episode_step += 1
    ends[-1] = True
    return np.array(kept), ends


def assert_follows_the_rule(data, rows, max_steps):
    kept, ends = d4rl_rule(rows, max_steps)
    for key in ("observations", "rewards", "terminals"):
        np.testing.assert_array_equal(data[key], rows[key][kept].astype(np.float32))
    np.testing.assert_array_equal(data["actions"], np.clip(rows["actions"][kept].astype(np.float32), -0.999, 0.999))
    np.testing.assert_array_equal(data["next_observations"], rows["observations"][kept + 1].astype(np.float32))
    np.testing.assert_array_equal(data["ends"], ends)
    assert {data[key].dtype for key in data.keys() - {"ends"}} == {np.dtype(np.float32)}
    assert data["ends"].dtype == bool


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
    assert_follows_the_rule(load(write(tmp_path / "data.hdf5", rows))[1], rows, 1000)


@pytest.mark.parametrize("terminals", [(), (99,), (100, 350), (199, 200, 401), (398, 649), (3, 202, 403)])
def test_transitions_follow_d4rls_rule_without_timeouts(tmp_path, terminals):
    rng = np.random.default_rng(0)
    rows = {
        "observations": rng.normal(size=(650, 39)),
        "actions": rng.uniform(-1, 1, (650, 28)),
        "rewards": rng.normal(size=650),
        "terminals": flags(650, *terminals),
    }
    _, data = load(write(tmp_path / "data.hdf5", rows), "door-human-v0")
    assert_follows_the_rule(data, rows, 200)
    assert len(data["ends"]) < 649


def test_door_human_has_d4rls_counts(shared_datasets):
    task, data = load(shared_datasets / "door-human-v0.hdf5", "door-human-v0")
    assert len(data["rewards"]) == 6703 and data["terminals"].sum() == 24
    assert "door-human-v0.hdf5: 6703 transitions, 24 terminal" in task.describe(data)


def test_hopper_scores_as_its_readme_says(shared_datasets):
    task, data = load(shared_datasets / "hopper-medium-expert-sb3-v0.hdf5", "hopper-medium-expert-v2")
    assert task.dataset_scores.mean() == pytest.approx(62.6, abs=0.3)
    assert len(data["ends"]) == 100_000  # with its own next observations every row is a transition


@pytest.mark.parametrize("marks_timeouts", [True, False])
@pytest.mark.parametrize("with_next", [True, False])
def test_files_without_any_end_are_cut_at_the_step_limit_with_a_note(tmp_path, marks_timeouts, with_next):
    rows = hopper_rows(100_000)
    if not marks_timeouts:
        rows["timeouts"] = None
    if with_next:
        rows["next_observations"] = np.roll(rows["observations"], -1, 0)
    task, data = load(write(tmp_path / "data.hdf5", rows))
    note = "the file marks no end of a trajectory in 100000 rows; they are cut every 1000 rows, the step limit"
    assert task.notes == [note]
    assert task.describe(data).splitlines()[1:] == [note]
    assert len(data["ends"]) == (100_000 if with_next else 99_900)
    assert data["ends"].sum() == len(task.dataset_returns) == 100


def test_an_unfinished_trajectory_shorter_than_the_step_limit_is_not_cut(tmp_path):
    task, data = load(write(tmp_path / "data.hdf5", hopper_rows(1000)))
    assert task.notes == [] and data["ends"].sum() == 1


def test_returns_are_undiscounted_sums_of_rewards_up_to_each_end(tmp_path):
    rewards = np.arange(20, dtype=np.float32)
    rows = hopper_rows(rewards=rewards, terminals=flags(20, 4), timeouts=flags(20, 12))
    for following in (None, np.append(rows["observations"][1:], rows["observations"][:1] + 1, 0)):
        task, _ = load(write(tmp_path / "data.hdf5", rows | {"next_observations": following}))
        np.testing.assert_allclose(task.dataset_returns, [rewards[:5].sum(), rewards[5:13].sum()])
        np.testing.assert_allclose(task.dataset_scores, task.score(task.dataset_returns))


# ---- files with next observations ------------------------------------------------------------------------------------


def walks(count=400):
    """A random walk that ends in a terminal at row 150 and times out at row 290."""
    rows = hopper_rows(count, terminals=flags(count, 150), timeouts=flags(count, 290))
    rows["observations"] = np.cumsum(rows["observations"], axis=0)
    rows["next_observations"] = np.roll(rows["observations"], -1, 0)
    rows["next_observations"][[150, 290, count - 1]] += 100
    return rows


def shuffled(rows):
    order = np.random.default_rng(1).permutation(len(rows["rewards"]))
    return {key: values[order] for key, values in rows.items()}


def test_with_next_observations_every_row_is_a_transition(tmp_path):
    rows = walks()
    rows["timeouts"][150] = True  # a terminal that is timed out too stays terminal
    task, data = load(write(tmp_path / "data.hdf5", rows))
    for key in ("observations", "next_observations", "rewards"):
        np.testing.assert_array_equal(data[key], rows[key])
    assert np.flatnonzero(data["terminals"]).tolist() == [150]
    assert np.flatnonzero(data["ends"]).tolist() == [150, 290, 399]
    assert task.notes == []


@pytest.mark.parametrize("noise", [1e-4, 0.5])
def test_noisy_next_observations_keep_order_and_ends(tmp_path, noise):
    rows = walks()
    deviation = rows["observations"].std(0)
    rows["next_observations"] += noise * deviation * np.random.default_rng(2).normal(size=(400, 11)).astype(np.float32)
    task, data = load(write(tmp_path / "data.hdf5", rows))
    np.testing.assert_array_equal(data["next_observations"], rows["next_observations"])
    assert np.flatnonzero(data["ends"]).tolist() == [150, 290, 399]
    assert task.notes == []


def test_noise_on_a_constant_column_does_not_count(tmp_path):
    rows = walks()
    rows["observations"][:, :6] = 0.1
    rows["next_observations"][:, :6] = 0.1 + 1e-4 * np.random.default_rng(2).normal(size=(400, 6))
    assert load(write(tmp_path / "data.hdf5", rows))[0].notes == []


def test_shuffled_rows_become_single_transitions_with_a_note(tmp_path):
    rows = shuffled(walks())
    task, data = load(write(tmp_path / "data.hdf5", rows))
    for key in ("observations", "next_observations", "rewards", "terminals"):
        np.testing.assert_array_equal(data[key], rows[key])
    assert data["ends"].all()
    assert len(task.notes) == 1 and "rows do not follow each other" in task.notes[0]
    np.testing.assert_allclose(task.dataset_returns, [rows["rewards"].sum(dtype=np.float64) / 2])


def demo_with_next_observations(noise):
    """The demo's transitions in D4RL's layout with next observations, and with noise on them."""
    with h5py.File(tasks.make().path) as file:
        rows = {key: file[key][()] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    rows["next_observations"] = np.roll(rows["observations"], -1, 0)
    rows["next_observations"] += noise * np.random.default_rng(0).normal(size=rows["observations"].shape)
    kept = ~rows["timeouts"] | rows["terminals"]
    rows["timeouts"] = np.roll(rows["timeouts"], -1)
    return {key: values[kept] for key, values in rows.items()}


def test_the_demo_with_noisy_next_observations_has_the_demos_trajectories(tmp_path):
    data = tasks.make(dataset_path=write(tmp_path / "data.hdf5", demo_with_next_observations(1e-4))).dataset()
    wanted = tasks.make().dataset()
    for key in ("observations", "actions", "rewards", "terminals", "ends"):
        np.testing.assert_array_equal(data[key], wanted[key])


@pytest.mark.parametrize("noise, ordered", [(0.0, True), (1e-2, True), (0.0, False), (1e-2, False)])
def test_rows_of_the_demo_follow_each_other_unless_shuffled(noise, ordered):
    rows = demo_with_next_observations(noise)
    if not ordered:
        rows = shuffled(rows)
    ends = rows["terminals"] | rows["timeouts"]
    assert rows_follow(rows["observations"], rows["next_observations"], ends) == ordered


# ---- invalid files ---------------------------------------------------------------------------------------------------


def test_actions_slightly_outside_the_bounds_are_clipped_with_a_note(tmp_path):
    rows = hopper_rows()
    rows["actions"][3] = [1.37, 0.0, -1.2]
    rows["actions"][7] = [0.0, 1.01, 0.0]
    task, data = load(write(tmp_path / "data.hdf5", rows))
    assert task.notes == ["2 of 19 actions lie outside the action space and are clipped"]
    assert np.abs(data["actions"]).max() == np.float32(0.999)


INVALID_ROWS = {  # `test_invalid_data_and_action_spaces_raise_an_error` has those of all sources
    "the key 'rewards' is missing": hopper_rows(rewards=None),
    "rewards has 19 rows": hopper_rows(rewards=np.zeros(19)),
    "timeouts has 25 rows": hopper_rows(timeouts=np.zeros(25, bool)),
    "next_observations has shape (20, 10)": hopper_rows(next_observations=np.zeros((20, 10))),
    "terminals holds values of type |S5, not numbers": hopper_rows(terminals=np.array([b"False"] * 20)),
    "terminals is -1 in row 0, neither 0 nor 1": hopper_rows(terminals=-np.ones(20, np.int8)),
    "contains no transitions": hopper_rows(0),
    "it contains no transitions": hopper_rows(timeouts=np.ones(20, bool)),
    "actions have shape (2,)": hopper_rows(actions=np.zeros((20, 2))),
}


@pytest.mark.parametrize("message", INVALID_ROWS)
def test_invalid_rows_raise_an_error_that_names_the_file(tmp_path, message):
    path = write(tmp_path / "data.hdf5", INVALID_ROWS[message])
    with pytest.raises(tasks.TaskError, match=re.escape(message)) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("missing", [None, "two.hdf5", "rewards in two.hdf5"])
def test_a_virtual_file_needs_its_parts(tmp_path, missing):
    """HDF5 itself reads zeros for them."""
    rows = hopper_rows()
    half = len(rows["rewards"]) // 2
    for name, part in (("one", slice(0, half)), ("two", slice(half, None))):
        write(tmp_path / f"{name}.hdf5", {key: values[part] for key, values in rows.items()})
    with h5py.File(tmp_path / "merged.hdf5", "w", libver="latest") as file:
        for key, values in rows.items():
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:half] = h5py.VirtualSource("one.hdf5", key, values[:half].shape)
            layout[half:] = h5py.VirtualSource("two.hdf5", key, values[half:].shape)
            file.create_virtual_dataset(key, layout)
    if missing == "two.hdf5":
        (tmp_path / "two.hdf5").unlink()
    elif missing:
        with h5py.File(tmp_path / "two.hdf5", "r+") as file:
            del file["rewards"]
    if not missing:
        _, whole = load(tmp_path / "merged.hdf5")
        np.testing.assert_array_equal(whole["rewards"], load(write(tmp_path / "data.hdf5", rows))[1]["rewards"])
        return
    with pytest.raises(tasks.TaskError, match=r"consists of parts in other files, and two\.hdf5 cannot be read"):
        load(tmp_path / "merged.hdf5")


def test_a_virtual_file_whose_parts_do_not_cover_it_or_are_virtual_and_incomplete_is_an_error(tmp_path):
    rows = hopper_rows()
    write(tmp_path / "one.hdf5", rows)
    for name, source in (("nested", "one"), ("merged", "nested")):
        with h5py.File(tmp_path / f"{name}.hdf5", "w", libver="latest") as file:
            for key, values in rows.items():
                layout = h5py.VirtualLayout(values.shape, values.dtype)
                layout[:] = h5py.VirtualSource(f"{source}.hdf5", key, values.shape)
                file.create_virtual_dataset(key, layout)
    expected = load(tmp_path / "one.hdf5")[1]
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "merged.hdf5").symlink_to(tmp_path / "merged.hdf5")
    np.testing.assert_array_equal(load(tmp_path / "link" / "merged.hdf5")[1]["actions"], expected["actions"])
    (tmp_path / "one.hdf5").unlink()
    with pytest.raises(tasks.TaskError, match=r"nested\.hdf5 cannot be read: .*one\.hdf5 cannot be read"):
        load(tmp_path / "merged.hdf5")

    write(tmp_path / "one.hdf5", rows)
    with h5py.File(tmp_path / "half.hdf5", "w", libver="latest") as file:
        for key, values in rows.items():
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:10] = h5py.VirtualSource("one.hdf5", key, values.shape)[:10]
            file.create_virtual_dataset(key, layout)
    with pytest.raises(tasks.TaskError, match="/observations has 220 numbers, of which only 110 are in its parts"):
        load(tmp_path / "half.hdf5")


def test_rewards_in_rows_that_are_no_transitions_are_noted(tmp_path):
    rewards = np.zeros(20, np.float32)
    rewards[[9, 19]] = 1.0
    rows = hopper_rows(rewards=rewards, timeouts=flags(20, 9, 19))
    task, data = load(write(tmp_path / "data.hdf5", rows))
    assert not data["rewards"].any() and "all rewards are in rows that are no transitions" in task.notes[0]
    task, data = load(write(tmp_path / "data.hdf5", rows | {"terminals": flags(20, 9), "timeouts": flags(20, 19)}))
    assert data["rewards"].sum() == 1 and not any("all rewards" in note for note in task.notes)


def test_flags_that_are_stored_only_where_they_are_set_are_read(tmp_path):
    rows = hopper_rows()
    path = write(tmp_path / "data.hdf5", rows)
    expected = load(path)[1]
    with h5py.File(path, "r+") as file:
        del file["terminals"]
        flags = file.create_dataset("terminals", rows["terminals"].shape, bool, chunks=(2,))
        for row in np.flatnonzero(rows["terminals"]):
            flags[row] = True
    np.testing.assert_array_equal(load(path)[1]["terminals"], expected["terminals"])


@pytest.mark.parametrize("kind", ["missing", "directory", "text", "truncated", "group"])
def test_unreadable_files_raise_an_error_that_names_the_file(tmp_path, kind):
    path = tmp_path / "data.hdf5"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("observations,actions\n")
    elif kind == "truncated":
        write(path, hopper_rows(5000))
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "group":
        write(path, hopper_rows(actions=None))
        with h5py.File(path, "a") as file:
            file.create_group("actions")
    with pytest.raises(tasks.TaskError, match=re.escape(str(path))) as raised:
        load(path)
    assert kind in ("missing", "directory", "text") or raised.value.__cause__ is not None


@pytest.mark.parametrize("change", [np.int8, np.uint8, np.float64, ">f4", "column"])
def test_other_number_types_and_columns_of_shape_n_1_are_read(tmp_path, change):
    rows = hopper_rows(terminals=flags(20, 4), timeouts=flags(20, 12))
    wanted = load(write(tmp_path / "data.hdf5", rows))[1]
    for key in ("rewards", "terminals", "timeouts"):
        if change == "column":
            rows[key] = rows[key][:, None]
        elif key != "rewards":
            rows[key] = rows[key].astype(change)
    data = load(write(tmp_path / "other.hdf5", rows))[1]
    for key in wanted:
        np.testing.assert_array_equal(data[key], wanted[key])


# ---- downloads -------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body`, and closes the connection after `sent` of its bytes."""

    body, sent = b"", 0

    def do_GET(self):
        status = 200 if self.body else 404
        self.send_response(status)
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


def test_a_missing_dataset_is_downloaded_once_to_d4rls_folder(tmp_path, monkeypatch, server, capfd):
    Server.body = write(tmp_path / "source.hdf5", hopper_rows(300)).read_bytes()
    Server.sent = len(Server.body)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(BENCHMARKS, HOPPER, BENCHMARKS[HOPPER]._replace(url=server))
    for _ in range(2):
        task, data = load(None)
        assert len(data["ends"]) == 299
        Server.body = b""  # the second time it has to be there
    assert task.path == tmp_path / "cache" / "hopper_medium-v2.hdf5"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["hopper_medium-v2.hdf5"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["cut", "not HDF5", "404", "refused", "no folder"])
def test_a_failed_download_leaves_nothing_behind(tmp_path, server, kind):
    Server.body = {"404": b"", "not HDF5": b"<html>" * 100}.get(kind, bytes(5_000_000))
    Server.sent = len(Server.body) // 2 if kind == "cut" else len(Server.body)
    url = "http://127.0.0.1:9/x.hdf5" if kind == "refused" else server
    target = tmp_path / "cache" / "hopper_medium-v2.hdf5"
    if kind == "no folder":
        target.parent.write_text("a file where the folder should be")
    with pytest.raises(tasks.TaskError, match=f"^cannot download .* download it manually to {target}"):
        download(url, target, lambda path: h5py.File(path, "r").close())
    assert kind == "no folder" or list(target.parent.iterdir()) == []


def test_without_a_home_folder_the_error_names_the_variable_to_set(monkeypatch):
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    with pytest.raises(tasks.TaskError, match="set D4RL_DATASET_DIR"):
        tasks.make(HOPPER)


# ---- tables and environments -----------------------------------------------------------------------------------------


def test_ids_urls_scores_and_limits_match_the_d4rl_wheel(tmp_path):
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "d4rl==1.1"]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip("the d4rl wheel cannot be downloaded")
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path)
    infos = runpy.run_path(str(tmp_path / "d4rl" / "infos.py"))
    hands = ast.parse((tmp_path / "d4rl" / "hand_manipulation_suite" / "__init__.py").read_text())
    assigned = {node.targets[0].id: node.value for node in hands.body if isinstance(node, ast.Assign)}
    limits = ast.literal_eval(assigned["MAX_STEPS"])
    assert len(BENCHMARKS) == 3 * 6 + 4 * 3 * 2
    for env_id, benchmark in BENCHMARKS.items():
        assert benchmark.url == infos["DATASET_URLS"][env_id]
        assert benchmark.min_return == infos["REF_MIN_SCORE"][env_id]
        assert benchmark.max_return == infos["REF_MAX_SCORE"][env_id]
        assert benchmark.max_episode_steps == limits.get(env_id.split("-")[0], 1000)


def test_score_is_0_and_100_at_the_reference_returns(tmp_path):
    task = tasks.make(HOPPER, str(write(tmp_path / "data.hdf5", hopper_rows())))
    assert task.score(np.array([-20.272305, 3234.3])).tolist() == pytest.approx([0.0, 100.0])


@pytest.mark.parametrize("env_id", ["halfcheetah-random-v2", "hopper-expert-v2", "walker2d-full-replay-v2"])
def test_mujoco_ids_use_gymnasiums_v4_with_1000_steps(env_id, monkeypatch, tmp_path):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write(tasks.locate(env_id)[0], hopper_rows())
    env = tasks.make(env_id).env()
    assert env.spec.id == {"ha": "HalfCheetah-v4", "ho": "Hopper-v4", "wa": "Walker2d-v4"}[env_id[:2]]
    assert env.spec.max_episode_steps == 1000
    assert (env.action_space.low == -1).all() and env.action_space.dtype == np.float32


@pytest.mark.parametrize("name", ["door", "hammer", "relocate", "pen"])
def test_adroit_rewards_and_endings_are_d4rls(tmp_path, name):
    """The formulas of d4rl's hand_manipulation_suite, evaluated on the simulator's own state."""
    task = tasks.make(f"{name}-human-v0", str(write(tmp_path / "data.hdf5", hopper_rows())))
    env = task.env()
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
        while steps < task.max_episode_steps:
            steps += 1
            _, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
            assert reward == pytest.approx(formula(), abs=1e-6)
            assert terminated == (name == "pen" and data.xpos[model.body("Object").id][2] < 0.075)
            fallen += terminated
            if terminated:
                break
            assert truncated == (steps == task.max_episode_steps)
    assert fallen > 0 or name != "pen"
