"""``python -m cargo_cow``: the same as the ``cargo-cow`` program."""

from cargo_cow.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
