"""`python -m dcr_ds …`: the same as `dcr-ds …`, for when the installed command is not on the PATH."""

import sys

from dcr_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
