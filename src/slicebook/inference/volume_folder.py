"""A folder of results, volume by volume: a volume that is done is not done again.

The folder has a hidden journal with the hashes of each volume's input and outputs. The outputs of a volume
are written into a hidden folder, and moved to their places when they are complete.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slicebook.inference.volumes import ENDINGS, ListedVolume
from slicebook.io.atomic import explaining_failure, move_files
from slicebook.io.resumable import Journal, hash_files
from slicebook.progress import Progress
from slicebook.version import __version__

Process = Callable[[ListedVolume, Path], Any]
"""Writes the outputs of a volume into a folder; returns what is to be known of them, as JSON values."""


def process_volumes(
    listed: Sequence[ListedVolume],
    folder: Path,
    command: str,
    request: Mapping[str, Any],
    process: Process,
    progress: Progress | None = None,
    *,
    endings: Sequence[str] = ENDINGS,
) -> list[Any]:
    """Process each volume whose outputs are not in the folder yet, and return the results of all.

    A volume is done again if its input, an output or the request is another than before.

    Args:
        listed: The volumes.
        folder: Where the outputs go; created if missing.
        command: Name of the command; each has a journal of its own.
        request: All that the outputs depend on besides the input, as JSON values.
        process: Processes one volume.
        progress: Called with the number of volumes done and of all volumes, first and after each.
        endings: Of the outputs of a volume; none for its folder of pictures.
    """
    created = not folder.exists()
    unfinished = folder / f".slicebook-{command}"
    journal = Journal(folder / f"{unfinished.name}.jsonl", {"slicebook_version": __version__, **request})
    left = [volume for volume in listed if not _is_done(volume, folder, endings, journal)]
    try:
        for number, volume in enumerate(left):
            if progress:
                progress(len(listed) - len(left) + number, len(listed))
            digest = volume.digest()
            with _partial(unfinished / volume.name) as place:
                result = process(volume, place)
                made = {folder / path.relative_to(place) for path in place.rglob("*")}
                move_files(place, folder)
                for path in set(_outputs(folder, volume.name, endings)) - made:
                    path.unlink()  # an earlier volume had more slices
            outputs = hash_files(_outputs(folder, volume.name, endings))
            journal.add(volume.name, {"input": digest, "outputs": outputs, "result": result})
    finally:
        for place in (unfinished, *([folder] if created else [])):
            with contextlib.suppress(OSError):
                place.rmdir()  # fails unless it is empty
    if progress:
        progress(len(listed), len(listed))
    return [journal.units[volume.name]["result"] for volume in listed]


@contextlib.contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """Make a folder without what a killed command left there, and remove it at the end."""
    try:
        with explaining_failure(place):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_done(volume: ListedVolume, folder: Path, endings: Sequence[str], journal: Journal) -> bool:
    kept = journal.units.get(volume.name)
    if not isinstance(kept, dict) or hash_files(_outputs(folder, volume.name, endings)) != kept.get(
        "outputs"
    ):
        return False
    return bool(volume.digest() == kept.get("input"))


def _outputs(folder: Path, name: str, endings: Sequence[str]) -> list[Path]:
    """Return the files of a volume that exist."""
    pictures = sorted((folder / name).glob("slice-*.png")) if "" in endings else []
    return [path for ending in endings if (path := folder / f"{name}{ending}").is_file()] + pictures
