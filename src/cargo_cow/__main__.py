"""``python -m cargo_cow``: the same as the ``cargo-cow`` program."""

from cargo_cow.cli.main import entry

if __name__ == "__main__":
    entry()
