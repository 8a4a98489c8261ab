# SPDX-License-Identifier: Apache-2.0
"""Every peer that runs in a process and an environment of its own, by the name that --peers takes."""

from dataclasses import dataclass
from typing import Final

from benchmarks.peer.environment import Environment

REDIS_PACKAGES: Final = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")


ROCKSDB_PACKAGES: Final = ("librocksdb7.8", "librocksdb-dev", "libgflags2.2", "libsnappy1v5")
"""Debian 12's; compression libraries are on every system that has apt-get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One peer.

    Attributes
    ----------
    module
        The adapter, run as `python -m MODULE` in the environment.
    environment
        What it needs.
    server
        Whether a network lies between trainer and rows, as with ours; others run in the trainer's process.
    variables
        Environment variables of the adapter.
    """

    module: str
    environment: Environment
    server: bool = True
    variables: tuple[tuple[str, str], ...] = ()


_TORCH: Final = Environment(modules=("torch",))
_REDIS: Final = Environment(name="redis", debian=REDIS_PACKAGES)
_TFRA: Final = Environment(
    name="tfra",
    packages=("tensorflow==2.16.2", "tensorflow-recommenders-addons==0.8.1", "tf_keras==2.16.0"),
    debian=REDIS_PACKAGES,
)

PEERS: Final[dict[str, Peer]] = {
    "openembedding": Peer(
        module="benchmarks.peer.openembedding",
        environment=Environment(name="openembedding", sources=("openembedding==0.1.2",)),
    ),
    "torch_rpc": Peer(module="benchmarks.peer.torch_rpc", environment=_TORCH),
    "redis_unix": Peer(
        module="benchmarks.peer.redis_server", environment=_REDIS, variables=(("PEER_TRANSPORT", "unix"),)
    ),
    "redis_tcp": Peer(
        module="benchmarks.peer.redis_server", environment=_REDIS, variables=(("PEER_TRANSPORT", "tcp"),)
    ),
    "paddle": Peer(
        module="benchmarks.peer.paddle_brpc",
        environment=Environment(
            name="paddle",
            packages=("paddlepaddle==2.6.2", "protobuf==3.20.3", "numpy==1.26.4", "setuptools==80.9.0"),
        ),
    ),
    "tfra_server": Peer(
        module="benchmarks.peer.tfra", environment=_TFRA, variables=(("PEER_MODE", "server"),)
    ),
    "tfra_process": Peer(
        module="benchmarks.peer.tfra", environment=_TFRA, variables=(("PEER_MODE", "process"),), server=False
    ),
    "tfra_redis": Peer(module="benchmarks.peer.tfra", environment=_TFRA, variables=(("PEER_MODE", "redis"),)),
    "ray": Peer(
        module="benchmarks.peer.ray_actor",
        environment=Environment(name="ray", packages=("ray==2.60.0", "numpy==2.4.6")),
    ),
    "rocksdb_c": Peer(
        module="benchmarks.peer.rocksdb_c",
        environment=Environment(name="rocksdb", debian=ROCKSDB_PACKAGES),
        server=False,
    ),
    "torchrec": Peer(
        module="benchmarks.peer.torchrec_tbe",
        environment=Environment(
            # without the torchrec package: it brings FBGEMM's CUDA build, which hides the one for CPU
            name="torchrec",
            packages=("torch==2.13.0+cpu", "fbgemm_gpu-cpu==1.8.0", "numpy==2.4.6"),
        ),
        server=False,
    ),
}

QUICK: Final = ("openembedding", "torch_rpc")
"""Peers of a quick run: the fastest server, and one that needs no install."""


def chosen(text: str | None, quick: bool) -> tuple[str, ...]:
    """Names of --peers: "all", "none", or names with commas; None: QUICK or all.

    Raises
    ------
    ValueError
        A name that is unknown.
    """
    if text is None:
        return QUICK if quick else tuple(PEERS)
    if text in ("all", "none"):
        return tuple(PEERS) if text == "all" else ()
    names = tuple(text.split(","))
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peer {name!r} is unknown; known are {', '.join(PEERS)}, all, none")
    return names
