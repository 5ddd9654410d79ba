"""The command line in this process, and one finished run of it."""

from pathlib import Path

import pytest

from polarspike import cli
from tests.cli.running import FLAGS, Call


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as leave:  # help, and options that cannot be read
            code = int(leave.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err or "--debug" in arguments
        return code, out, err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one finished run of TINY."""
    place = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", *FLAGS, "--run", str(place)]) == 0
    return place
