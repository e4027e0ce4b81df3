"""`python -m ppfr` is `ppfr`, for torchrun and for environments without the script."""

from ppfr.cli import main

if __name__ == "__main__":
    main()
