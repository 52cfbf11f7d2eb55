"""A disk that fills while samples are written."""

import errno
from pathlib import Path

import pytest

from slicebook.errors import DataError
from slicebook.inference.generate import generate


def test_a_full_disk_names_the_sample_and_the_bytes(trained, tmp_path, monkeypatch):
    write = Path.write_bytes

    def fail(path, content):
        if ".sample-" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    wanted = r"sample-000000\.nii\.gz: cannot be written \(No space left on device; [\d,]+ bytes wanted\)"
    with pytest.raises(DataError, match=wanted):
        generate(trained.run, tmp_path / "out", count=1, device="cpu")
    assert not (tmp_path / "out").exists()
