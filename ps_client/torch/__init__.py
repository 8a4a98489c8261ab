# SPDX-License-Identifier: Apache-2.0
"""PyTorch modules over a Client. The only part of rowhouse's packages that imports torch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as failure:
    raise ImportError("ps_client.torch needs PyTorch: pip install 'rowhouse[torch]'") from failure
