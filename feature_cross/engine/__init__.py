# SPDX-License-Identifier: Apache-2.0
"""Running a plan over rows: a batch, a stream, Ray's blocks."""
