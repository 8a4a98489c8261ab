# SPDX-License-Identifier: Apache-2.0
"""A Transport with two ways to one shard: frames for the hot calls where they serve, gRPC for the rest.

This module alone knows when to go back to gRPC and when to try the data port again. Where GetCluster tells a
data port, the hot calls take it. After a lost connection the next attempt goes over gRPC, which knows how to
wait for a shard that restarts; once that is answered, the data port is asked for anew. A port that cannot be
reached, or never answers, is tried again ever more rarely.

Thread safety: any number of threads may call at once.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from rowhouse.error import RowhouseError
from rowhouse.message import Contribution, PullRequest, PullResponse, PushRequest, PushResponse
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_client.transport.frame import FrameTransport, open_frames
from ps_client.transport.transport import Begun, Transport, closed_in_call

ASK_AGAIN_S: Final = 5.0
"""Time for asking a shard, which has just answered, for its data port."""

RETRY_S: Final = 5.0
"""A data port that did not serve one call is tried again after so long, then twice as long, and so on."""

RETRY_MAX_S: Final = 600.0

_log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")


class FallbackTransport(Transport):
    """One shard over frames and gRPC.

    Parameters
    ----------
    grpc
        Carries every call.
    open_frames
        Opens the way to a data port from (endpoint, data endpoint, token); None where it cannot be used.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        grpc: Transport,
        open_frames: Callable[[str, str, int], FrameTransport | None] = open_frames,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = grpc.endpoint
        self._grpc, self._open_frames, self._clock = grpc, open_frames, clock
        self._closed = False
        self._frames: FrameTransport | None = None
        self._retired: list[FrameTransport] = []
        self._told: tuple[str, int] | None = None
        self._offer: tuple[str, int] | None = None  # what was told, while it may be tried
        self._lost = False
        self._failures, self._retry_s = 0, 0.0
        self._lock = threading.Lock()

    def pull(self, request: PullRequest, timeout_s: float) -> PullResponse:
        """Rows of one step."""
        return self._hot(self._grpc.pull, request, timeout_s)

    def push(self, request: PushRequest, timeout_s: float) -> PushResponse:
        """Gradients of one step."""
        return self._hot(self._grpc.push, request, timeout_s)

    def contribute(self, request: Contribution, timeout_s: float) -> pb.ContributeResponse:
        """One trainer's gradients of one step."""
        return self._hot(self._grpc.contribute, request, timeout_s)

    def begin(self, request: PullRequest | PushRequest, timeout_s: float) -> Begun[Any] | None:
        """A pull or push that is sent, and not waited for; None where a connection is to be opened first."""
        frames = self._frames
        return None if frames is None else self._begin(frames, request, timeout_s)

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Answer of a control call; that of GetCluster also says where the next hot call goes."""
        answer = self._grpc.call(method, request, timeout_s)
        if method == "GetCluster":
            self._note(answer.data_endpoint, answer.data_token)
        return answer

    def close(self) -> None:
        """Close both ways: calls under way break off."""
        self._closed = True
        self._grpc.close()
        with self._lock:
            for frames in (*self._retired, *([self._frames] if self._frames else [])):
                frames.close()

    def _hot(self, over_grpc: Callable[[R, float], T], request: R, timeout_s: float) -> T:
        frames = self._frames or self._open()
        if frames is not None:
            answer: T = self._begin(frames, request, timeout_s).result()
            return answer
        answer = over_grpc(request, timeout_s)  # so the shard is there, and a lost port is looked for
        if self._lost and self._clock() >= self._retry_s:
            try:
                self.call("GetCluster", pb.GetClusterRequest(), ASK_AGAIN_S)
            except RowhouseError as failure:
                _log.info("shard at %s: %s", self.endpoint, failure)
        return answer

    def _begin(self, frames: FrameTransport, request: Any, timeout_s: float) -> Begun[Any]:
        begun = frames.begin(request, timeout_s)

        def result() -> Any:
            try:
                return begun.result()
            except RowhouseError as failure:
                if not begun.call.succeeded:
                    if self._closed:
                        raise closed_in_call(self.endpoint) from failure
                    if frames.lost:
                        self._lose(frames)
                raise

        return Begun(begun.call, result)

    def _note(self, data_endpoint: str, token: int) -> None:
        """Take what a shard told of its data port: a new one is tried at once, the same one when due."""
        offer = (data_endpoint, token)
        with self._lock:
            if offer != self._told:
                self._told, self._failures, self._retry_s = offer, 0, 0.0
            elif self._frames is not None or self._clock() < self._retry_s:
                return
            self._retire()
            self._offer, self._lost = (offer if data_endpoint else None), False

    def _open(self) -> FrameTransport | None:
        if self._offer is None:
            return None
        with self._lock:
            if self._frames is None and self._offer is not None and not self._closed:
                self._frames = self._open_frames(self.endpoint, *self._offer)
                if self._frames is None:
                    if not self._failures:
                        _log.warning(
                            "shard at %s: its data port %s cannot be reached; going on over gRPC, which is "
                            "slower (data_port in the cluster's config sets the port)",
                            self.endpoint, self._offer[0],
                        )  # fmt: skip
                    self._set_aside(served=False)
            return self._frames

    def _lose(self, frames: FrameTransport) -> None:
        """Go on over gRPC until the shard tells its data port anew."""
        with self._lock:
            if self._frames is frames:
                self._retire()
                self._set_aside(frames.served)

    def _set_aside(self, served: bool) -> None:
        self._offer, self._lost = None, True
        wait_s = 0.0 if served else RETRY_S * 2 ** min(self._failures, 32)
        self._failures = 0 if served else self._failures + 1
        self._retry_s = self._clock() + min(wait_s, RETRY_MAX_S)

    def _retire(self) -> None:
        """Use the frames no more; `close` still ends the calls that are under way on them."""
        if self._frames is not None:
            self._frames.retire()
            self._retired = [one for one in (*self._retired, self._frames) if one.busy]
            self._frames = None
