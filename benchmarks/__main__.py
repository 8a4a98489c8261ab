# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`."""

import sys

from benchmarks.cli import main

sys.exit(main())
