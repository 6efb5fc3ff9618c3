"""``python -m longstream``."""

import sys

from longstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
