"""``python -m polarspike``: the command line."""

from polarspike.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
