"""Errors of the file system, in words."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from zoopress.errors import os_words


def test_a_folder_that_cannot_be_copied_is_told_without_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from").mkdir()
    for name in ("one", "two"):
        (tmp_path / "from" / name).write_text("x")

    def full(source: str, target: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    with pytest.raises(shutil.Error) as failed:
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=full)
    assert os_words(failed.value) == "No space left on device"


def test_one_that_has_no_number_says_what_it_says() -> None:
    assert os_words(OSError(errno.EACCES, "Permission denied")) == "Permission denied"
    assert os_words(OSError("odd")) == "odd"
