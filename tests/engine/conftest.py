"""One process in a group of its own, for the engines of a test file."""

import pytest

from dcr_ds.engine import distributed as process


@pytest.fixture(scope="module")
def ranks():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # put back as it was, after the module
            patch.delenv(name)
        process.set_environment()
        yield process.start()
        process.close()
