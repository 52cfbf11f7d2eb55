"""Lets `python -m slicebook` stand for the `slicebook` command."""

import sys

from slicebook.cli import main

sys.exit(main())
