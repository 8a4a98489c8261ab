# SPDX-License-Identifier: Apache-2.0
"""What a changed config does to ids."""
