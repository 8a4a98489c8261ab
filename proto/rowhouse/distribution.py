# SPDX-License-Identifier: Apache-2.0
"""What this distribution is called where packages are installed from.

The import names (`rowhouse`, `ps_server`, `ps_client`, `feature_cross`) are others: the name `rowhouse`
belongs to another project on PyPI. A test holds pyproject.toml and every `pip install` in code and documents
to this name (tests/docs/test_distribution.py).
"""

from typing import Final

DISTRIBUTION: Final = "rowhouse-ps"


def install_hint(extra: str = "") -> str:
    """The command that installs the distribution, with one of its extras if `extra` names one.

    >>> install_hint("torch")
    "pip install 'rowhouse-ps[torch]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {DISTRIBUTION}"
