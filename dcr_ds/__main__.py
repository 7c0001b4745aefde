"""`python -m dcr_ds …`: the same as `dcr-ds …`, for when the installed command is not on the PATH.

`python -m dcr_ds train` is the same as train.py, so that ranks can be started where there is no train.py.
"""

import sys

from dcr_ds.cli import main, train_as_rank

if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        del sys.argv[1]
        train_as_rank()
    else:
        sys.exit(main())
