"""The command line over the judge."""

import pytest
from typer import Typer


@pytest.fixture
def app() -> Typer:
    from sweeps.cli import app

    return app
