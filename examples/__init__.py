# SPDX-License-Identifier: Apache-2.0
"""Examples: three models trained against a real cluster, and the demo that runs them end to end."""
