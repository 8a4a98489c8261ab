# SPDX-License-Identifier: Apache-2.0
"""The jagged batches that collections take and give: torchrec's where it is installed, else ours.

Both have the constructors and methods that collection.py uses. Thread safety: nothing here has state.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ps_client.torch.jagged import JaggedTensor, KeyedJaggedTensor, KeyedTensor
else:
    try:
        from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor
    except ImportError:
        from ps_client.torch.jagged import JaggedTensor, KeyedJaggedTensor, KeyedTensor

__all__ = ["JaggedTensor", "KeyedJaggedTensor", "KeyedTensor"]
