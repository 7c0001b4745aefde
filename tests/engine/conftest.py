"""A process group of a single process, for the engines of a test file."""

import pytest

from dcr_ds.engine import distributed as process
from dcr_ds.engine.launcher import set_environment


@pytest.fixture(scope="module")
def ranks():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # restored after the module
            patch.delenv(name)
        set_environment()
        yield process.start()
        process.close()
