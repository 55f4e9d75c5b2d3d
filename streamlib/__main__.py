"""`python -m streamlib`: the command line."""

from streamlib.cli import main

if __name__ == "__main__":
    main(prog_name="streamlib")
