"""The shell completes commands and options."""

import os
import subprocess
import sys

import pytest


def ask(words, **more):
    """Ask for completion as bash does."""
    environment = os.environ | {"_SLICEBOOK_COMPLETE": "complete_bash", "COMP_WORDS": words} | more
    command = [sys.executable, "-m", "slicebook"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("slicebook rec", ["reconstruct"]),
        ("slicebook train gen", ["generator"]),
        ("slicebook generate --mask", ["--masks"]),
        ("slicebook prepare --layout hip", ["hipmri2d", "hipmri3d"]),
    ],
)
def test_bash_completes(words, completed):
    assert ask(words, COMP_CWORD=str(len(words.split()) - 1)) == completed


def test_the_script_for_bash_is_printed():
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "slicebook", "--show-completion", "bash"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "complete -o default -F _slicebook_completion slicebook" in printed
