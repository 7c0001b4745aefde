"""`python -m dcr_ds …` is `dcr-ds …`, where the installed command is not on the path."""

import sys

from dcr_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
