"""``python -m ase_deeprelax``: the command line."""

from ase_deeprelax.cli import main

if __name__ == '__main__':
    main()
