# SPDX-License-Identifier: Apache-2.0
"""What an author of a config runs: the commands of `feature-cross`. The engine imports nothing of it."""
