"""`python -m raylign`, where the `raylign` command is not on the path."""

from raylign.cli import main

if __name__ == "__main__":
    main()
