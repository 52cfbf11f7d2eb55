"""Lets `python -m slicebook` stand for the `slicebook` command."""

import sys

from slicebook.cli.main import main

sys.exit(main())
