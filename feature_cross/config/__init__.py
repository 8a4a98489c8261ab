# SPDX-License-Identifier: Apache-2.0
"""What an author declares, and the plan that it becomes."""
