# SPDX-License-Identifier: Apache-2.0
import rowhouse as _rowhouse  # noqa: F401  # finds a folder for compiled kernels before one is declared
