# SPDX-License-Identifier: Apache-2.0
"""Generated protobuf stubs of rowhouse.proto (python tools/generate_stubs.py)."""
