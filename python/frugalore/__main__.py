"""``python -m frugalore``: the same as the ``frugalore`` command."""

from frugalore.cli.main import main

if __name__ == "__main__":
    main()
