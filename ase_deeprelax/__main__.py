"""The command line: ``deeprelax``, and ``python -m ase_deeprelax``."""

import signal
import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback, also while it is loaded."""
    try:
        from ase_deeprelax.cli import main as command  # takes half a second
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # as shells have it
    command()


if __name__ == '__main__':
    main()
