# SPDX-License-Identifier: Apache-2.0
"""A fuzzer with coverage feedback (atheris, on libFuzzer) over the parsers of foreign bytes.

The first byte of an input chooses the parser, the rest is what is parsed. A hot message that our codec
accepts must be one that protobuf accepts too, with the same meaning. Every parser must return or raise an
error of ours. test_parser_fuzz.py runs this module in a process of its own; by hand:

    python -m tests.hostile.parser_fuzz --runs 1000000 --seed 7 --corpus FOLDER
    python -m tests.hostile.parser_fuzz --replay FILE
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import atheris
import numpy as np

with atheris.instrument_imports(include=["rowhouse.codec", "rowhouse.frame", "rowhouse.document"]):
    from rowhouse import codec, document, frame

from google.protobuf.message import DecodeError
from rowhouse.error import CorruptionError, InvalidRequestError, LimitExceededError, RowhouseError
from rowhouse.problem import DocumentError
from rowhouse.v1 import rowhouse_pb2 as pb

with atheris.instrument_imports(include=["ps_server.disk.segment"]):
    from ps_server.disk import segment

from tests.hostile.parser_fault import FAULTS
from tests.property import wire_fuzz

Parser = Callable[[bytes], None]

SCRATCH: Final = tempfile.TemporaryDirectory()
MEMORY_BYTES: Final = 2 << 30
"""No parser may need more. (libFuzzer's own bound looks at the peak that Linux hands on from the process that
started this one.)"""

REFUSALS: Final = (InvalidRequestError, LimitExceededError)


def _same(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes], message: Any) -> Parser:
    """What our codec accepts, protobuf reads with the same meaning."""

    def parse(data: bytes) -> None:
        try:
            ours = decode(data)
        except REFUSALS:
            return
        try:
            theirs = message.FromString(data)
        except DecodeError as error:
            raise AssertionError(f"protobuf refuses what our codec accepts: {error}") from error
        theirs.DiscardUnknownFields()
        if message is pb.ContributeRequest:  # ours has both, empty where they are absent
            theirs.member.SetInParent()
            theirs.push.SetInParent()
        again = message.FromString(encode(ours))
        assert again.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)

    return parse


def _frame(data: bytes) -> None:
    """A head, then what an ERROR frame may have as its body."""
    if len(data) >= frame.HEAD.size:
        try:
            kind, size, token = frame.decode_head(data[: frame.HEAD.size])
        except REFUSALS:
            pass
        else:
            head = frame.encode_head(kind, size, token)
            assert head[:5] + head[8:] == data[:5] + data[8 : frame.HEAD.size]
    assert isinstance(frame.decode_error(memoryview(data), "fuzz"), RowhouseError)


def _segment(data: bytes) -> None:
    """A log segment, as the last one (its end may be torn) and as one in the middle."""
    path = Path(SCRATCH.name) / "segment"
    path.write_bytes(data)
    for last in (True, False):
        try:
            for end, record in segment.read_segment(path, last):
                assert 0 < end <= len(data) and len(record.payload) < len(data)
        except CorruptionError:
            pass


def _document(data: bytes) -> None:
    with suppress(DocumentError):
        document.parse_document(data.decode("utf-8", "replace"), "fuzz")


PARSERS: Final[tuple[Parser, ...]] = (
    _same(codec.decode_push_request, codec.encode_push_request, pb.PushRequest),
    _same(codec.decode_pull_request, codec.encode_pull_request, pb.PullRequest),
    _same(codec.decode_contribution, codec.encode_contribution, pb.ContributeRequest),
    _same(codec.decode_pull_response, codec.encode_pull_response, pb.PullResponse),
    _same(codec.decode_push_response, codec.encode_push_response, pb.PushResponse),
    _frame,
    _segment,
    _document,
)


def _by_hand(number: int) -> pb.PushRequest:
    """Rows assigned, or removed."""
    rows = {"dim": 2, "dtype": pb.DTYPE_FLOAT32, "weights": bytes(16), "state": bytes(24), "clicks": bytes(8)}
    part = pb.TableGradients(
        table="user", count=2, ids=bytes(range(16)), **(rows if number % 2 else {"remove": True})
    )
    return pb.PushRequest(map_version=7, client_id=1, sequence=number + 1, tables=[part])


def seeds(folder: Path) -> None:
    """Write right inputs of every parser, from which the fuzzer goes on."""
    rng = np.random.default_rng(1)
    texts: list[list[bytes]] = [[] for _ in PARSERS]
    for number in range(6):
        push = wire_fuzz.push(rng, 7, number + 1)
        push.tables[0].shows = np.ones(push.tables[0].count, "<f4").tobytes()
        member = pb.Member(group=3, trainer=0, trainers=2, incarnation=1, name="fuzz", pace=pb.PACE_BSP)
        rows = pb.TableRows(table="user", dim=2, count=1, dtype=pb.DTYPE_FLOAT16, rows=bytes(4))
        texts[0] += [push.SerializeToString(), _by_hand(number).SerializeToString()]
        texts[1].append(wire_fuzz.pull(rng, 7).SerializeToString())
        texts[2].append(pb.ContributeRequest(member=member, push=push).SerializeToString())
        texts[3].append(pb.PullResponse(lsn=number, tables=[rows]).SerializeToString())
        texts[4].append(pb.PushResponse(lsn=number, duplicate=bool(number % 2)).SerializeToString())
        texts[5].append(frame.encode_head(number, 100, 7) + frame.encode_error(InvalidRequestError("why")))
    record = segment.encode_record(segment.Record(1, segment.KIND_PUSH, 5, b"payload"))
    head = segment.encode_header(1, 0, segment.Owner("ab" * 16, 0))
    texts[6] += [head + b"".join(record), head + b"".join(record)[:-3], head]
    texts[7] += [b"a: [1, 0x2, .inf, ~]\nb: &x {c: 'd'}\nc: *x\n", b"- |\n  text\n- >-\n  folded\n"]
    for parser, some in enumerate(texts):
        for number, data in enumerate(some):
            (folder / f"seed-{parser}-{number}").write_bytes(bytes([parser]) + data)


def parse(data: bytes) -> None:
    """Give an input to the parser that its first byte chooses."""
    if data:
        PARSERS[data[0] % len(PARSERS)](data[1:])


def main() -> None:
    """Fuzz until `--runs`, or parse one file again; a finding ends the process with its input in a file."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--runs", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--corpus", type=Path, help="folder of inputs; new ones are kept there")
    arguments.add_argument("--replay", type=Path, help="parse this file, and nothing else")
    arguments.add_argument("--fault", choices=sorted(FAULTS), help="plant a fault that must be found")
    given = arguments.parse_args()
    if given.fault:
        setattr(*FAULTS[given.fault])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    if given.replay:
        parse(given.replay.read_bytes())
        return
    corpus = given.corpus or Path(SCRATCH.name) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    seeds(corpus)
    options = [f"-atheris_runs={given.runs}", f"-seed={given.seed}", "-timeout=60", "-rss_limit_mb=0"]
    options += ["-max_len=4096", f"-artifact_prefix={corpus}/", str(corpus)]
    atheris.Setup([sys.argv[0], *options], parse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
