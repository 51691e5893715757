"""``python -m widthwise.transfer``: the command line, where the script ``widthwise`` is not on the path."""

from widthwise.transfer.cli import main

if __name__ == "__main__":
    main()
