import os
from unittest.mock import patch

import pytest


@pytest.fixture
def own_environment():
    """Restore the environment: a command that evaluates sets the variables of a single process."""
    with patch.dict(os.environ):
        yield
