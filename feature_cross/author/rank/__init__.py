# SPDX-License-Identifier: Apache-2.0
"""Which crosses are worth their memory: ranked on held-out rows, pruned, suggested."""
