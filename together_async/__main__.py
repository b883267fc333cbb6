"""`python -m together_async` is the command `together-async`."""

import sys

from together_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
