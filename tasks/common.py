"""What the sources share: the error they raise, quiet imports, folders of datasets and downloads."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import h5py


class TaskError(ValueError):
    """A task or its data cannot be used. The message is one sentence: what is wrong and, where it helps, what to do."""


@contextlib.contextmanager
def task_errors(start: str | Path) -> Iterator[None]:
    """Raise every error of the block as a TaskError whose message starts with `start`, such as the file being read.

    Damaged files, networks and graphics libraries fail in many ways inside the packages used here, so all exceptions
    are caught. The original error is kept as the cause.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, TaskError) else repr(error)
        raise TaskError(f"{start}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence messages and warnings of environment packages while they are imported and started."""
    gym.logger.min_level = gym.logger.ERROR  # D4RL's v2 tasks run on gymnasium's v4: no advice to upgrade to v5
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def data_folder(variable: str, *default: str) -> Path:
    """The folder named by an environment variable; without the variable, `default` inside the home folder."""
    folder = os.environ.get(variable)
    if folder:
        return Path(folder)
    with task_errors(f"there is no home folder to keep datasets in; set {variable} to a folder"):
        return Path.home().joinpath(*default)  # fails in containers whose user has no entry in /etc/passwd


def download(url: str, path: Path) -> None:
    """Download an HDF5 file. It appears at `path` only when it is complete and can be opened.

    Raises:
        TaskError: if the download fails or its result is not an HDF5 file.
    """
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 20, timeout=60)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with task_errors(f"cannot download {url}; download it by other means and put it at {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            pooch.retrieve(url, None, temporary.name, temporary.parent, downloader=downloader)
            h5py.File(temporary, "r").close()
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
