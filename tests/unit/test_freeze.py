# SPDX-License-Identifier: Apache-2.0
"""Who is obeyed when a freeze command and the config's `freeze` differ: whoever spoke last."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rowhouse.v1 import rowhouse_pb2 as pb

from ps_server.disk import checkpoint
from ps_server.disk.checkpoint import CheckpointState
from ps_server.disk.store import Store
from tests.driver import Driver, shard_config

Mode = Literal["off", "refuse", "ignore"]
MODES: dict[Mode, pb.FreezeMode] = {
    "off": pb.FREEZE_MODE_OFF, "refuse": pb.FREEZE_MODE_REFUSE, "ignore": pb.FREEZE_MODE_IGNORE,
}  # fmt: skip


class Rig:
    """A shard of one table, started again with other configs."""

    def __init__(self, folder: Path, mode: Mode = "off") -> None:
        self.folder, self.copies = folder, 0
        folder.mkdir(exist_ok=True)
        self.driver = Driver(self._config(mode), folder / "s")

    def _config(self, mode: Mode) -> Any:
        return shard_config(self.folder, [{"name": "user", "dim": 4, "freeze": mode}])

    def start(self, mode: Mode, *, killed: bool = False) -> str:
        """End, cleanly or killed, and start with a config; the table's mode then."""
        self.driver.config = self._config(mode)
        if killed:
            self.copies += 1
            self.driver.crash(self.folder / f"copy-{self.copies}")
        else:
            self.driver.reopen()
        return self.mode

    def command(self, mode: Mode) -> None:
        self.driver.freeze("user", MODES[mode])

    @property
    def mode(self) -> str:
        return self.driver.shard._tables["user"].frozen


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    made = Rig(tmp_path)
    yield made
    made.driver.shard.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_command_holds_until_the_config_changes(rig: Rig, killed: bool) -> None:
    rig.command("refuse")
    assert rig.start("off", killed=killed) == "refuse"
    assert rig.start("off", killed=killed) == "refuse"
    assert rig.start("ignore", killed=killed) == "ignore", "the config changed after the command"
    assert rig.start("off", killed=killed) == "off", "and the command does not come back"
    rig.command("ignore")
    assert rig.start("off", killed=killed) == "ignore"
    rig.command("off")
    assert rig.start("off", killed=killed) == "off"


@pytest.mark.parametrize("killed", [False, True])
def test_a_command_opens_a_table_that_the_config_freezes(rig: Rig, killed: bool) -> None:
    assert rig.start("refuse", killed=killed) == "refuse"
    rig.command("off")
    assert rig.start("refuse", killed=killed) == "off"
    assert rig.start("off", killed=killed) == "off"
    assert rig.start("refuse", killed=killed) == "refuse"


def test_a_kill_right_after_the_start_that_overruled_a_command(rig: Rig) -> None:
    """Nothing but the start itself has written since."""
    rig.command("refuse")
    assert rig.start("ignore", killed=True) == "ignore"
    assert rig.start("off", killed=True) == "off"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(st.tuples(st.sampled_from(["command", "stop", "kill"]), st.sampled_from(list(MODES)))))
def test_any_row_of_commands_and_starts(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, Mode]]
) -> None:
    rig = Rig(tmp_path_factory.mktemp("freeze"))
    said: str = "off"
    configured: str = "off"
    for act, mode in acts:
        if act == "command":
            rig.command(mode)
            said = mode
        else:
            if mode != configured:
                said = configured = mode
            rig.start(mode, killed=act == "kill")
        assert rig.mode == said
    rig.driver.shard.close()


def test_a_read_only_shard_obeys_and_writes_nothing(rig: Rig) -> None:
    rig.command("ignore")
    rig.driver.config = rig._config("refuse")
    rig.driver.reopen(read_only=True)
    assert rig.mode == "refuse"
    rig.driver.config = rig._config("off")
    rig.driver.reopen()
    assert rig.mode == "ignore"


def test_a_directory_of_an_earlier_version_is_read_as_it_was(rig: Rig) -> None:
    """It has no `configured`: the command goes before any config, and from then on as a new one."""
    rig.command("refuse")
    rig.driver.shard.close()
    store = Store(rig.driver.directory / "store", {}, cache_bytes=1 << 20, memtable_bytes=1 << 20)
    document = asdict(checkpoint.read(store))
    assert document.pop("configured") == {"user": "off"}
    store.put_meta({checkpoint.STATE_KEY: checkpoint._sealed(document)})
    store.close()
    rig.driver.config = rig._config("ignore")
    rig.driver.shard = rig.driver._open()
    assert rig.mode == "refuse"
    assert rig.start("ignore", killed=True) == "refuse"
    assert rig.start("off", killed=True) == "off"


def test_an_earlier_version_finds_nothing_new_where_no_command_holds(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", {}, cache_bytes=1 << 20, memtable_bytes=1 << 20)
    checkpoint.write(store, CheckpointState(lsn=3), {})
    data = store.get_meta(checkpoint.STATE_KEY)
    assert data is not None
    assert set(checkpoint._unsealed(data, "it")) == {"lsn", "clients", "rows", "frozen"}
    store.close()
