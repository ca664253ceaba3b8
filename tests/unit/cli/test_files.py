"""Files that a command writes: whole, or not at all."""

import os
import stat
from pathlib import Path

import pytest

from llm_auction_chain.cli.files import whole_file
from llm_auction_chain.errors import ConfigurationError


def test_a_file_is_there_when_it_is_whole_and_only_this_user_can_read_it(tmp_path):
    with whole_file("--save", tmp_path / "a.json") as file:
        file.write("né")
        assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "a.json").read_text("utf-8") == "né"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(error, tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(error), whole_file("--save", tmp_path / "a.json") as file:  # noqa: PT012 - the file is open
        file.write("new")
        raise error
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("there")
    with whole_file("--save", tmp_path / "link") as file:
        file.write("new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "there").read_text()) == (True, "new")


@pytest.mark.parametrize("path", [".", "none/a.json", "/dev/null", "file/a.json", "fifo", "n" * 300 + "/a"])
def test_a_path_that_cannot_be_written_is_refused_by_the_name_of_its_option(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    os.mkfifo("fifo")
    with pytest.raises(ConfigurationError, match=f"--save {path}"), whole_file("--save", Path(path)):
        pytest.fail("opened")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fifo", "file"]
