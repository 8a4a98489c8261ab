# SPDX-License-Identifier: Apache-2.0
"""The jagged batches that collections take and give: torchrec's where it is installed, else ours.

Both have the constructors and methods that collection.py uses; ours also refuses batches whose parts do
not fit, which torchrec leaves to a later failure. A torchrec whose compiled part does not load (it is
built for one version of torch) counts as not installed, and a warning in the log says so.
Thread safety: nothing here has state.
"""

from logging import getLogger
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ps_client.torch.jagged_tensor import JaggedTensor
    from ps_client.torch.keyed_jagged_tensor import KeyedJaggedTensor
    from ps_client.torch.keyed_tensor import KeyedTensor
else:
    try:
        from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor
    except (ImportError, OSError) as failure:
        if isinstance(failure, OSError):
            getLogger(__name__).warning("torchrec is installed and does not load: %s", failure)
        from ps_client.torch.jagged_tensor import JaggedTensor
        from ps_client.torch.keyed_jagged_tensor import KeyedJaggedTensor
        from ps_client.torch.keyed_tensor import KeyedTensor

__all__ = ["JaggedTensor", "KeyedJaggedTensor", "KeyedTensor"]
