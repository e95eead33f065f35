"""`python -m invert3d_core`: the same as the command `invert3d`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
