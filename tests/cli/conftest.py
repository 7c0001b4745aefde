"""A tiny model, a recipe with small data, a finished run, and helpers for commands that fail."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_runs import snapshot, the_error, write_recipe
from tiny import make_model

from dcr_ds.cli import main


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", layers=2, tied=False)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, model) -> str:
    """A recipe with the tiny model and data. A run takes a second and writes to `<its folder>/runs/run`."""
    return str(write_recipe(tmp_path_factory.mktemp("recipe"), model))


@pytest.fixture(scope="session")
def finished_run(recipe) -> Path:
    """The run folder of the recipe after both stages."""
    assert main(["train", recipe]) == 0
    return Path(recipe).parent / "runs" / "run"


@pytest.fixture
def failing(recipe, capsys) -> Callable[..., str]:
    """Run `train RECIPE` with more arguments, check the exit code, and return the error message."""

    def run(*arguments: object, code: int = 2, start_from: str = recipe) -> str:
        capsys.readouterr()
        assert main(["train", start_from, *map(str, arguments)]) == code
        return the_error(capsys.readouterr().err)

    return run


@pytest.fixture
def refused(failing, finished_run) -> Callable[..., str]:
    """As `failing`, and check that the finished run of the recipe does not change."""

    def run(*arguments: object, start_from: str | None = None) -> str:
        before = snapshot(finished_run)
        message = failing(*arguments, **({"start_from": start_from} if start_from else {}))
        assert snapshot(finished_run) == before
        return message

    return run


@pytest.fixture
def disk_full():
    """A context in which no file can grow beyond a number of bytes: writing more fails as on a full disk."""

    @contextmanager
    def limit(largest_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
