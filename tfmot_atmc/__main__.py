# SPDX-License-Identifier: Apache-2.0
"""`python -m tfmot_atmc`: the command line."""

import sys

from tfmot_atmc.cli import main

if __name__ == "__main__":
    sys.exit(main())
