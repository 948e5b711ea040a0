"""`python -m compress` is the command `compress`."""

from compress.cli import main

if __name__ == "__main__":
    main()
