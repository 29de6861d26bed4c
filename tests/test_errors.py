"""What a disk refuses ends a tool with one line; our own mistakes keep their stack trace."""

import errno

import pytest

from megatron_jmed.errors import run_tool


def test_a_file_in_the_place_of_a_folder_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: (tmp_path / "file/below").mkdir())
    assert end.value.code == 2
    assert capsys.readouterr().err == (f"error: [Errno 20] Not a directory: '{tmp_path}/file/below'; a part of the path is a file; "
                                       "name a folder there\n")


def fail_with(number: int) -> None:
    raise OSError(number, "text", "file")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_the_users_to_mend(number, capsys):
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: fail_with(number))
    assert end.value.code == 2 and f"error: [Errno {number}] text: 'file'; " in capsys.readouterr().err


def test_other_errors_of_the_system_are_ours():
    with pytest.raises(OSError, match="text"):
        run_tool(lambda: fail_with(errno.EBADF))
