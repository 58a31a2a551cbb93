"""LeRobot folders: the rules for transitions, rewards and terminals on known numbers; the demo; invalid folders."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folder import episode, write_folder

import tasks
from tasks.lerobot_file import is_lerobot_folder, read_lerobot_folder

FORMATS = ("v2.0", "v2.1", "v3.0")


def read(tmp_path, episodes, observation_keys=None, assume_success=False, **how):
    return read_lerobot_folder(write_folder(tmp_path / "data", episodes, **how), observation_keys, assume_success)


def assert_columns(transitions, **expected):
    for key, values in expected.items():
        np.testing.assert_array_equal(transitions.columns[key], np.asarray(values), err_msg=key)


def rewards_terminals(transitions):
    """Both as strings, a digit a transition, and | after the end of a trajectory."""
    columns = transitions.columns
    bars = np.where(columns["ends"], "|", "")
    rewards = "".join(f"{reward:g}{bar}" for reward, bar in zip(columns["rewards"], bars))
    return rewards, "".join(f"{int(flag)}{bar}" for flag, bar in zip(columns["terminals"], bars))


# ---- transitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("lists", [False, True])
def test_frames_become_transitions_except_the_last_of_each_episode(tmp_path, version, lists):
    episodes = [
        episode(3, next_reward=[0.5, 1.0, 2.0], next_success=[False, False, True]),
        episode(2, next_reward=[0.25, 4.0], next_success=[False, False]),
    ]
    transitions = read(tmp_path, episodes, version=version, lists=lists)
    assert_columns(
        transitions,
        observations=[[0, 0], [1, -1], [0, 0]],
        next_observations=[[1, -1], [2, -2], [1, -1]],
        actions=[[0], [1], [0]],
        rewards=[0.5, 3.0, 4.25],
        terminals=[False, True, False],
        ends=[False, True, True],
    )
    assert transitions.returns.tolist() == [3.5, 4.25] and transitions.returns.dtype == np.float64
    assert transitions.notes == [] and transitions.ordered
    types = {key: values.dtype for key, values in transitions.columns.items()}
    assert {types.pop("terminals"), types.pop("ends")} == {np.dtype(bool)}
    assert set(types.values()) == {np.dtype(np.float32)}


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_files_and_rows_does_not_matter(tmp_path, version, seed):
    rng = np.random.default_rng(seed)
    episodes = []
    for length in (4, 7, 2, 5, 9):
        rows = {"next_reward": rng.normal(size=length).astype(np.float32), "next_success": rng.random(length) < 0.3}
        episodes.append(episode(length, observation_state=rng.normal(size=(length, 3)).astype(np.float32), **rows))
    expected = read(tmp_path / "sorted", episodes, version=version)
    transitions = read(tmp_path / "shuffled", episodes, version=version, order=rng)
    files = sorted(path.relative_to(tmp_path / "shuffled" / "data") for path in tmp_path.glob("shuffled/*/data/*/*"))
    assert len(files) == (3 if version == "v3.0" else 5) and {path.parts[1] for path in files} > {"chunk-000"}
    assert len(transitions.columns["ends"]) == 22
    assert_columns(transitions, **expected.columns)
    np.testing.assert_array_equal(transitions.returns, expected.returns)


def test_episodes_of_one_frame_are_no_transition_but_have_a_return(tmp_path):
    episodes = [episode(1, next_reward=[5.0]), episode(3, next_reward=[1.0, 1.0, 3.0]), episode(1, next_reward=[7.0])]
    transitions = read(tmp_path, episodes)
    assert rewards_terminals(transitions) == ("14|", "00|")
    assert transitions.returns.tolist() == [5, 5, 7]
    assert transitions.notes == ["2 of 3 episodes have a single frame, which is no transition"]


def test_environment_state_follows_state(tmp_path):
    columns = {"observation_environment_state": [[7.0, 8.0], [9.0, 10.0]], "observation_velocity": [3.0, 4.0]}
    transitions = read(tmp_path, [episode(2, **columns)], images=True)
    assert_columns(transitions, observations=[[0, 0, 7, 8]], next_observations=[[1, -1, 9, 10]])


@pytest.mark.parametrize(
    "keys, expected",
    [
        (["observation.velocity"], [3]),
        (["observation.velocity", "observation.state"], [3, 0, 0]),
        (["observation.state.arm"], [6, 6]),  # not mixed up with observation.state
    ],
)
def test_observation_keys_choose_columns(tmp_path, keys, expected):
    columns = {"observation_velocity": np.array([3, 4], np.int16), "observation_state.arm": [[6, 6], [5, 5]]}
    transitions = read(tmp_path, [episode(2, **columns)], keys)
    assert transitions.columns["observations"].tolist() == [expected]


def test_image_columns_are_not_read(tmp_path, monkeypatch):
    read_columns = []
    original = pq.ParquetFile.read

    def spy(file, columns=None, **how):
        read_columns.extend(columns)
        return original(file, columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "read", spy)
    read(tmp_path, [episode(2, next_reward=[0.0, 1.0])], images=True)
    assert "observation.state" in read_columns and "observation.images.top" not in read_columns


def test_a_folder_is_recognized_by_its_info(tmp_path):
    assert not is_lerobot_folder(tmp_path) and not is_lerobot_folder(tmp_path / "missing")
    assert is_lerobot_folder(write_folder(tmp_path / "data", [episode(2)]))


def test_neither_lerobot_nor_torch_is_imported(tmp_path):
    folder = write_folder(tmp_path / "data", [episode(2, next_reward=[0.0, 1.0])])
    program = (
        "import sys, pathlib; from tasks.lerobot_file import *; assert 'pyarrow' not in sys.modules; "
        "read_lerobot_folder(pathlib.Path(sys.argv[1])); assert not {'lerobot', 'torch', 'datasets'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, cwd=tasks.__path__[0] + "/..")


# ---- rewards and terminals -------------------------------------------------------------------------------------------


def flags(text):
    return np.array([letter == "1" for letter in text])


def numbers(text):
    return np.array([float(letter) for letter in text], np.float32)


@pytest.mark.parametrize(
    "success, rewards, terminals, returns",
    [
        (["0001", "000"], "001|00|", "001|00|", [1, 0]),
        (["0100", "000"], "001|00|", "001|00|", [1, 0]),  # anywhere in the episode
        (["0111", "111"], "001|01|", "001|01|", [1, 1]),  # once an episode
    ],
)
def test_without_rewards_success_flags_make_them(tmp_path, success, rewards, terminals, returns):
    episodes = [episode(len(text), next_success=flags(text), next_done=flags(text) | True) for text in success]
    transitions = read(tmp_path, episodes)
    assert rewards_terminals(transitions) == (rewards, terminals)
    assert transitions.returns.tolist() == returns and transitions.notes == []


def test_success_flags_that_are_never_true_give_no_reward(tmp_path):
    transitions = read(tmp_path, [episode(3, next_success=flags("000"))])
    assert rewards_terminals(transitions) == ("00|", "00|") and transitions.returns.tolist() == [0]


@pytest.mark.parametrize(
    "rewards, success, expected, terminals",
    [
        ("1234", "0001", "127|", "001|"),
        ("1234", "0000", "127|", "000|"),
        ("1234", "0100", "127|", "010|"),  # the flag says where, not the end
        ("0011", "0011", "001|", "001|"),  # the second reward of success comes after a terminal frame
    ],
)
def test_with_rewards_success_flags_are_terminal(tmp_path, rewards, success, expected, terminals):
    columns = {"next_reward": numbers(rewards), "next_success": flags(success), "next_done": flags("0001")}
    transitions = read(tmp_path, [episode(4, **columns)])
    assert rewards_terminals(transitions) == (expected, terminals)
    assert transitions.returns.tolist() == [numbers(rewards).sum()] and transitions.notes == []


@pytest.mark.parametrize(
    "done, terminals, noted",
    [
        (["0001", "001"], "000|00|", True),  # the end of every episode
        (["0001", "000"], "001|00|", False),  # of one only
        (["0100", "000"], "010|00|", False),
        (["0101", "001"], "011|01|", False),  # not the ends alone
        (["0011", "001"], "001|01|", False),
        (["0000", "000"], "000|00|", False),
        (None, "000|00|", False),
    ],
)
def test_without_success_flags_done_is_terminal_unless_it_marks_all_ends_alone(tmp_path, done, terminals, noted):
    rewards = [numbers("1234"), numbers("212")]
    episodes = [episode(len(values), next_reward=values) for values in rewards]
    for index, text in enumerate(done or ()):
        episodes[index]["next.done"] = flags(text)
    transitions = read(tmp_path, episodes)
    after_terminal = done is not None and done[0] == "0011"
    assert rewards_terminals(transitions) == ("123|23|" if after_terminal else "127|23|", terminals)
    assert transitions.returns.tolist() == [10, 5]
    assert ["which can mean a time limit" in note for note in transitions.notes] == [True] * noted


@pytest.mark.parametrize("done", [None, "001"])
def test_without_rewards_and_success_flags_a_note_says_what_to_do(tmp_path, done):
    episodes = [episode(3) for _ in range(2)]
    for columns in episodes if done else ():
        columns["next.done"] = flags(done)
    transitions = read(tmp_path, episodes)
    assert rewards_terminals(transitions) == ("00|00|", "00|00|") and transitions.returns.tolist() == [0, 0]
    assert "no rewards and no success flags; --assume-success" in transitions.notes[0]
    assert len(transitions.notes) == (1 if done is None else 2)

    assumed = read(tmp_path / "assumed", episodes, assume_success=True)
    assert rewards_terminals(assumed) == ("01|01|", "01|01|") and assumed.returns.tolist() == [1, 1]
    assert assumed.notes == []


def test_assume_success_replaces_rewards(tmp_path):
    transitions = read(tmp_path, [episode(3, next_reward=[0, 0, 0], next_success=flags("000"))], assume_success=True)
    assert rewards_terminals(transitions) == ("01|", "01|")


# ---- the demo --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra_frame", [True, False])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_the_demo_as_a_folder_has_the_demos_transitions(tmp_path, version, extra_frame):
    """Each trajectory of n transitions is written as n + 1 frames, or as n frames.

    n + 1: the extra frame holds the last next observation, a repeated action and no reward. The folder then has exactly
    the demo's transitions. (The next observation of a terminal row is not in the demo's file and never used.)

    n: without it the last transition of each trajectory is dropped. Its reward and its flag move to the one before.
    """
    demo = tasks.make().read()
    columns = demo.columns
    episodes = []
    for rows in np.split(np.arange(len(columns["ends"])), np.flatnonzero(columns["ends"])[:-1] + 1):
        frames = {
            "observation.state": columns["observations"][rows],
            "action": columns["actions"][rows],
            "next.reward": columns["rewards"][rows],
            "next.success": columns["terminals"][rows],
        }
        if extra_frame:
            frames["observation.state"] = np.append(
                frames["observation.state"], columns["next_observations"][rows[-1:]], axis=0
            )
            frames["action"] = np.append(frames["action"], frames["action"][-1:], axis=0)
            frames["next.reward"] = np.append(frames["next.reward"], np.float32(0))
            frames["next.success"] = np.append(frames["next.success"], False)
        episodes.append(frames)
    how = {"episodes_per_file": 100, "files_per_chunk": 3, "order": np.random.default_rng(0)}
    transitions = read(tmp_path, episodes, version=version, **how)
    ends = np.flatnonzero(columns["ends"])
    if extra_frame:
        assert len(transitions.columns["ends"]) == len(columns["ends"]) > 20_000
        assert_columns(transitions, **{key: columns[key] for key in transitions.columns})
    else:
        kept = ~columns["ends"]
        unchanged = ("observations", "actions", "next_observations")
        assert_columns(
            transitions, **{key: columns[key][kept] for key in unchanged}, ends=columns["ends"][1:][kept[:-1]]
        )
        rewards, terminals = columns["rewards"].copy(), columns["terminals"].copy()
        rewards[ends - 1] += rewards[ends]
        terminals[ends - 1] |= terminals[ends]
        assert_columns(transitions, rewards=rewards[kept], terminals=terminals[kept])
    sums = np.add.reduceat(columns["rewards"], np.append(0, ends[:-1] + 1), dtype=np.float64)
    np.testing.assert_array_equal(transitions.returns, sums)
    single = int(columns["ends"][0] + (columns["ends"][1:] & columns["ends"][:-1]).sum())
    note = f"{single} of {len(ends)} episodes have a single frame, which is no transition"
    assert single == 18 and transitions.notes == ([] if extra_frame else [note])


# ---- invalid folders -------------------------------------------------------------------------------------------------


def error(folder, **how):
    """The one line that reading a folder raises, without the folder that it begins with."""
    with pytest.raises(tasks.TaskError) as raised:
        read_lerobot_folder(folder, **how)
    message = str(raised.value)
    assert message.startswith(f"{folder}: ") and "\n" not in message
    return message.removeprefix(f"{folder}: ")


def test_images_alone_are_not_enough(tmp_path):
    columns = episode(3)
    del columns["observation.state"]
    folder = write_folder(tmp_path / "data", [columns], images=True)
    message = error(folder)
    assert "images only (observation.images.top, observation.images.wrist); SAQ needs vectors" in message
    assert "from: nothing" in error(folder, observation_keys=["observation.images.top"])


def test_errors_list_the_vectors_to_choose_from(tmp_path):
    columns = episode(3, observation_state_arm=np.ones((3, 2)), next_reward=np.ones(3))
    columns["observation.name"] = np.array(["a", "b", "c"])
    folder = write_folder(tmp_path / "data", [columns], images=True)
    message = error(folder, observation_keys=["observation.state", "state"])
    assert (
        message
        == "there is no vector 'state'; choose with --observation-keys from: observation.state, observation.state_arm"
    )
    del columns["observation.state"]
    message = error(write_folder(tmp_path / "other", [columns]))
    assert message == "there is no observation.state; choose with --observation-keys from: observation.state_arm"


@pytest.mark.parametrize("version", ["v1.6", "v4.0", "3", None])
def test_other_formats_raise_an_error(tmp_path, version):
    folder = write_folder(tmp_path / "data", [episode(3)], info={"codebase_version": version})
    message = error(folder)
    assert message == f"the codebase_version is {version}; LeRobot's formats v2.0, v2.1 and v3.0 can be read"


@pytest.mark.parametrize("version", FORMATS)
def test_a_missing_part_is_named(tmp_path, version):
    folder = write_folder(tmp_path / "data", [episode(3, next_reward=np.ones(3)) for _ in range(8)], version=version)
    files = sorted(folder.glob("data/*/*.parquet"))
    files[2].unlink()
    files[3].unlink()
    count = 4 if version == "v3.0" else 8
    assert error(folder).startswith(f"{files[2].relative_to(folder)} is missing (2 of {count} data files are)")


@pytest.mark.parametrize("version", FORMATS)
def test_a_missing_list_of_episodes_is_named(tmp_path, version):
    folder = write_folder(tmp_path / "data", [episode(3)], version=version)
    path = next((folder / "meta").rglob("episodes.jsonl" if version < "v3" else "*.parquet"))
    path.unlink()
    assert error(folder).startswith("meta/episodes")


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("total", ["total_episodes", "total_frames"])
def test_totals_that_contradict_the_data_raise_an_error(tmp_path, version, total):
    folder = write_folder(tmp_path / "data", [episode(3), episode(4)], version=version)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {total: 9}))
    expected = {"total_episodes": "9 episodes with 7 frames", "total_frames": "2 episodes with 9 frames"}[total]
    assert error(folder) == f"meta/info.json says {expected}, the data files have 2 with 7"
    del info[total]
    path.write_text(json.dumps(info))
    assert error(folder) == f"meta/info.json has no {total!r}"


def test_a_column_that_one_file_lacks_is_named(tmp_path):
    folder = write_folder(tmp_path / "data", [episode(3, next_reward=np.ones(3)) for _ in range(4)])
    path = min(folder.glob("data/*/*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns(["next.reward"]), path)
    assert error(folder) == f"{path.relative_to(folder)}: the column 'next.reward' is missing"


def test_text_with_a_byte_order_mark_or_unusual_line_ends_is_read(tmp_path):
    folder = write_folder(tmp_path / "data", [episode(3), episode(4)], version="v2.1")
    for path in (folder / "meta" / "info.json", folder / "meta" / "episodes.jsonl"):
        path.write_text("\ufeff" + path.read_text().replace('"length"', '"tasks": ["a\u2028b"], "length"'), "utf-8")
    assert len(read_lerobot_folder(folder).columns["ends"]) == 5


def test_observations_that_the_default_leaves_out_are_named(tmp_path):
    columns = {"observation_state": [[1, 2], [3, 4]], "observation_velocity": [3.0, 4.0]}
    (note,) = read(tmp_path, [episode(2, next_reward=[0, 1], **columns)]).notes
    assert note == "observations are observation.state, without observation.velocity; --observation-keys chooses"


def test_missing_and_repeated_frames_raise_an_error(tmp_path):
    folder = write_folder(tmp_path / "data", [episode(3), episode(4)], version="v2.1")
    path = folder / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(path)
    for rows, frame in (([0, 1, 3], 3), ([0, 1, 1, 2], 1), ([1, 2, 3], 1)):
        pq.write_table(table.take(rows), path)
        assert error(folder) == f"the frames of episode 1 are not numbered 0, 1, 2 ...: see frame {frame}"


def replaced(values):
    def change(table, name):
        return table.set_column(table.column_names.index(name), name, [pa.array(values)])

    return change


INVALID_COLUMNS = {
    "action has missing values": ("action", replaced([[1.0], None, [2.0]])),
    "action has missing values ": ("action", replaced([[1.0], [None], [2.0]])),
    "next.done has missing values": ("next.done", replaced([False, None, True])),
    "action holds vectors of different lengths": ("action", replaced([[1.0], [1.0, 2.0, 3.0], [1.0, 2.0]])),
    "observation.state has 3 dimensions, those of other files have 2": ("observation.state", replaced([[1.0] * 3] * 3)),
    "actions has a NaN or an infinity in row 4": ("action", replaced([[1.0], [np.nan], [2.0]])),
    "actions holds values of type object, not numbers": ("action", replaced(["a", "b", "c"])),
    "next.done is 2 in row 5, neither 0 nor 1": ("next.done", replaced([0, 1, 2])),
    "next.reward has 3 dimensions, those of other files have 1": ("next.reward", replaced([[1.0, 2.0, 3.0]] * 3)),
    "the column 'frame_index' is missing": ("frame_index", lambda table, name: table.drop_columns([name])),
}


@pytest.mark.parametrize("message", INVALID_COLUMNS)
def test_invalid_columns_raise_an_error(tmp_path, message):
    episodes = [episode(3, next_reward=np.ones(3), next_done=flags("000")) for _ in range(2)]
    folder = write_folder(tmp_path / "data", episodes, episodes_per_file=1)
    name, change = INVALID_COLUMNS[message]
    path = folder / "data" / "chunk-000" / "file-001.parquet"
    pq.write_table(change(pq.read_table(path), name), path)
    assert message.strip() in error(folder)


def test_damaged_files_raise_an_error_that_names_them(tmp_path):
    folder = write_folder(tmp_path / "data", [episode(3), episode(3)], version="v2.1")
    (folder / "data" / "chunk-000" / "episode_000001.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    assert error(folder).startswith("data/chunk-000/episode_000001.parquet: ArrowInvalid")
    (folder / "meta" / "info.json").write_text("{")
    assert "JSONDecodeError" in error(folder)


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("lengths", [(), (1, 1)])
def test_no_transition_raises_an_error(tmp_path, version, lengths):
    folder = write_folder(tmp_path / "data", [episode(length) for length in lengths], version=version)
    assert error(folder).startswith(("it contains no transitions", "meta/episodes has no parquet file"))


# ---- ids -------------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers what the Hugging Face Hub's client asks about one dataset, robot/reach, whose files are in `folder`."""

    folder, works, sent = Path(), True, []
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self):
        if not self.works:
            return self.send_error(503)
        if self.path.startswith("/api/datasets/robot/reach"):
            files = [path for path in self.folder.rglob("*") if path.is_file()]
            names = [path.relative_to(self.folder).as_posix() for path in files]
            answer = {"id": "robot/reach", "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
            if "/tree/" in self.path:
                answer = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0"}
                    for name, path in zip(names, files)
                ]
            return self.answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})
        name = self.path.removeprefix(f"/datasets/robot/reach/resolve/{self.commit}/")
        if name == self.path or not (self.folder / name).is_file():
            return self.send_error(404)
        content = (self.folder / name).read_bytes()
        if self.command == "GET":
            self.sent.append(name)
        self.answer(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.commit})

    do_HEAD = do_GET

    def answer(self, content, headers):
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hub, for commands that are run as a process of their own."""
    Hub.folder, Hub.works = tmp_path / "hub", True
    Hub.sent.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "recorded"))
        yield Hub
        server.shutdown()


def describe(*words):
    return subprocess.run(
        [sys.executable, "-m", "tasks", *words], cwd=tasks.__path__[0] + "/..", capture_output=True, text=True
    )


def test_a_dataset_is_downloaded_from_the_hub_without_its_videos(hub):
    write_folder(hub.folder, [episode(4, next_reward=numbers("0001")) for _ in range(3)])
    (hub.folder / "videos").mkdir()
    (hub.folder / "videos" / "top.mp4").write_bytes(b"video")
    done = describe("lerobot:robot/reach")
    assert done.returncode == 0, done.stderr
    assert "6 transitions, 0 terminal, 2 trajectories, mean return 1.00" in done.stdout
    assert done.stderr == "" and "videos/top.mp4" not in hub.sent and "meta/info.json" in hub.sent
    hub.works = False  # what was downloaded stays
    assert describe("lerobot:robot/reach").stdout == done.stdout


def test_a_dataset_that_was_recorded_here_is_not_downloaded(hub, tmp_path):
    write_folder(tmp_path / "recorded" / "robot" / "reach", [episode(4) for _ in range(3)])
    done = describe("lerobot:robot/reach", "--assume-success")
    assert done.returncode == 0 and "mean return 1.00" in done.stdout, done.stderr
    assert hub.sent == []


@pytest.mark.parametrize("fault", ["away", "unknown", "no dataset"])
def test_a_failed_download_is_one_line(hub, fault):
    hub.works = fault != "away"
    write_folder(hub.folder, [episode(4)])
    (hub.folder / "meta" / "info.json").rename(hub.folder / "meta" / "other.json")
    name = {"away": "robot/reach", "unknown": "robot/grasp", "no dataset": "robot/reach"}[fault]
    done = describe(f"lerobot:{name}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for words in (f"cannot download {name}", f"https://huggingface.co/datasets/{name}", "--dataset-path"):
        assert words in done.stderr
    assert ("no meta/info.json" in done.stderr) == (fault == "no dataset")


def test_the_hubs_client_is_silent_about_retries():
    program = (
        "from tasks.common import import_hub; import_hub(); from huggingface_hub.utils import _http; "
        "assert not _http.logger.isEnabledFor(30)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tasks.__path__[0] + "/..")


def test_a_folder_without_an_id_has_no_environment(tmp_path):
    episodes = [episode(length, next_reward=np.ones(length)) for length in (4, 7, 5)]
    task = tasks.make(dataset_path=write_folder(tmp_path / "data", episodes))
    data = task.dataset()
    assert task.env_id == "none" and not task.has_env and task.max_episode_steps == 6
    assert len(data["ends"]) == 9 and len(task.held_out[1]) == 4
    with pytest.raises(tasks.TaskError, match="--dataset-filter selects demonstrations of robomimic files"):
        tasks.make(dataset_path=task.path, dataset_filter="train")


def test_a_folder_can_be_used_for_an_environment_of_matching_shapes(tmp_path):
    columns = {"observation_state": np.zeros((4, 28)), "action": np.zeros((4, 4)), "next_reward": numbers("0001")}
    folder = write_folder(tmp_path / "data", [episode(4, **columns)])
    task = tasks.make("fetch-pick-and-place-demo-v0", folder)
    assert len(task.dataset()["ends"]) == 3 and task.has_env
    other = write_folder(tmp_path / "other", [episode(4)])
    with pytest.raises(tasks.TaskError, match=r"observations have shape \(2,\).* or 'none' for data without one"):
        tasks.make("fetch-pick-and-place-demo-v0", other).dataset()


PUSHT = "lerobot:lerobot/pusht_keypoints"


def pusht_folder(folder):
    """Two episodes in the layout of lerobot/pusht_keypoints. The second reaches the goal."""
    rng = np.random.default_rng(0)
    episodes = []
    for rewards in ([0.0, 0.5, 0.25, 0.25], [0.1, 0.2, 0.9, 1.0]):
        columns = {
            "observation_state": rng.uniform(0, 512, (4, 2)).astype(np.float32),
            "observation_environment_state": rng.uniform(0, 512, (4, 16)).astype(np.float32),
            "action": rng.uniform(0, 512, (4, 2)).astype(np.float32),
            "next_reward": np.float32(rewards),
            "next_success": np.array(rewards) == 1.0,
        }
        episodes.append(episode(4, **columns))
    return write_folder(folder, episodes)


def test_pusht_is_scored_by_success_and_its_return_is_the_largest_coverage(tmp_path):
    pytest.importorskip("gym_pusht")
    task = tasks.make(PUSHT, pusht_folder(tmp_path / "data"))
    data = task.dataset()
    assert data["observations"].shape == (6, 18) and data["terminals"].tolist() == [0, 0, 0, 0, 0, 1]
    assert task.dataset_returns.tolist() == [0.5, 1.0] and task.dataset_scores.tolist() == [0.0, 100.0]
    assert (task.action_low, task.action_high) == ([0.0, 0.0], [512.0, 512.0])

    env = task.env()
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, env.reset(seed=0)[0])
    raw = env.unwrapped.get_obs()
    np.testing.assert_array_equal(env.reset(seed=0)[0], [*raw["agent_pos"], *raw["environment_state"]])
    largest = growth = 0.0
    for _ in range(300):
        block = observation[2:].reshape(-1, 2).mean(0)
        observation, reward, _, truncated, info = env.step((block - 256) / 256)  # to the block's center
        largest = max(largest, min(info["coverage"] / 0.95, 1.0))
        growth += reward
    assert growth == pytest.approx(largest) and 0 < largest < 1 and truncated
    result = task.evaluate(lambda observations: np.zeros((len(observations), 2)), 2)
    assert result["scores"].tolist() == [0.0, 0.0] and result["lengths"].tolist() == [300, 300]


def test_pusht_without_its_package_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(tasks.TaskError, match="pip install gym-pusht"):
        tasks.make(PUSHT, pusht_folder(tmp_path / "data")).env()
