# SPDX-License-Identifier: Apache-2.0
"""The kernel of an optimizer by itself; a push reaches it through kernel/step.py."""

from collections.abc import Callable
from typing import Any

from ps_server.kernel import optimizer, optimizer_proximal

KERNELS: dict[str, Callable[..., None]] = {
    "sgd": optimizer.sgd,
    "momentum": optimizer.momentum,
    "adagrad": optimizer.adagrad,
    "rowwise_adagrad": optimizer.rowwise_adagrad,
    "adam": optimizer.adam,
    "adamw": optimizer.adam,
    "ftrl": optimizer_proximal.ftrl,
    "group_ftrl": optimizer_proximal.group_ftrl,
    "fobos": optimizer_proximal.fobos,
    "fobos_adagrad": optimizer_proximal.fobos_adagrad,
}


def kernel_of(config: Any) -> Callable[..., None]:
    """kernel(weights, weight_at, state, state_at, gradients, hyper) of an optimizer's config."""
    return KERNELS[config.kind]
