# SPDX-License-Identifier: Apache-2.0
"""Configs: what is accepted, and how each wrong one is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rowhouse.error import ConfigError

from ps_server.config.cluster import ClusterConfig, load_config, parse_bytes, shard_directory
from ps_server.config.endpoint import split_endpoint

GOOD = """\
data_dir: data
memory_budget: 2GiB
tables:
  - name: user
    dim: 16
    optimizer:
      kind: adagrad
      learning_rate: 1e-3
"""


def load(text: str, folder: Path) -> ClusterConfig:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def message(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, folder)
    return str(caught.value).replace(f"{folder}/", "")


def test_defaults_of_a_small_config(tmp_path: Path) -> None:
    config = load(GOOD, tmp_path)
    assert config.memory_budget == 2 << 30 and config.durability == "os"
    assert config.data_dir == tmp_path / "data"
    assert config.shard_count == 1 and config.endpoints == ("127.0.0.1:7470",)
    table = config.tables[0]
    assert (table.dim, table.dtype, table.seed, table.admission) == (16, "fp32", 0, None)
    assert table.eviction == () and table.freeze == "off" and table.initializer.kind == "uniform"
    assert table.optimizer.learning_rate == 1e-3
    assert config.table("user") is table and config.table("item") is None


def test_a_name_and_a_dim_make_a_table() -> None:
    table = load_config({"data_dir": "d", "tables": [{"name": "user", "dim": 16}]}).tables[0]
    assert table.optimizer.kind == "adagrad"


def test_resolved_yaml_reads_back_as_the_same_config(tmp_path: Path) -> None:
    extra = "    eviction: [{kind: ttl, ttl_s: 60}, {kind: l2_norm, min_l2_norm: 0.5}]\n    freeze: off\n"
    config = load(GOOD + extra + "shards: ['a:1', '[::1]:2']\ndurability: none\n", tmp_path)
    assert load(config.to_yaml(), tmp_path) == config


def test_a_mapping_equals_a_file(tmp_path: Path) -> None:
    table = {"name": "user", "dim": 16, "optimizer": {"kind": "adagrad", "learning_rate": 1e-3}}
    mapping = {"data_dir": tmp_path / "data", "memory_budget": 2 << 30, "tables": [table]}
    assert load_config(mapping) == load(GOOD, tmp_path)


def test_overrides_replace_keys_and_their_paths_are_relative_to_here(tmp_path: Path) -> None:
    load(GOOD, tmp_path)
    config = load_config(tmp_path / "cluster.yaml", {"shards": 3, "data_dir": "elsewhere"})
    assert config.shard_count == 3 and config.data_dir == Path("elsewhere").absolute()


def test_a_config_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(GOOD, tmp_path).shards = 2


WRONG = [
    ("dim: 16", "dim: 2000", "5: tables[0].dim is 2000; it must be less than or equal to 1024"),
    ("dim: 16", "dim: 0", "5: tables[0].dim is 0; it must be greater than or equal to 1"),
    ("dim: 16", "dim: '16'", "5: tables[0].dim is '16'; it must be a valid integer"),
    ("dim: 16", "dim: 16.0", "5: tables[0].dim is 16.0; it must be a valid integer"),
    ("dim: 16", "dtype: fp32", "4: tables[0].dim is missing; it must be given"),
    ("dim: 16", "dim: 16\n    dtype: fp8", "6: tables[0].dtype is 'fp8'; it must be 'fp32', "),
    ("dim: 16", "dim: 16\n    dim: 3", "6: tables[0]: key 'dim' is there twice; the first is on line 5"),
    ("dim: 16", "dim: 16\n    sede: 3", "6: tables[0].sede: unknown key; did you mean 's"),
    ("dim: 16", "dim: 16\n    zzz: 3", "tables[0].zzz: unknown key; known ones are 'admission', 'dim',"),
    ("dim: 16", "dim: 16\n    seed: -1", "tables[0].seed is -1; it must be greater than or equal to 0"),
    ("dim: 16", "dim: 16\n    seed: 18446744073709551616", "it must be less than 18446744073709551616"),
    ("dim: 16", "dim: 16\n    freeze: false", "tables[0].freeze is False; it must be 'off', '"),
    ("name: user", "name: ''", "4: tables[0].name is ''; it must have 1 to 128 bytes of UTF-8"),
    ("name: user", f"name: {'ü' * 65}", "it must have 1 to 128 bytes of UTF-8"),
    ("name: user", 'name: "a\\nb"', "it must be printable, with no white space at its ends"),
    ("kind: adagrad", "kind: adagrda", "7: tables[0].optimizer.kind is 'adagrda'; it must be 'sgd', "),
    ("kind: adagrad", "seed: 1", "tables[0].optimizer.kind is missing; it must be 'sgd', "),
    ("learning_rate", "lerning_rate", "tables[0].optimizer.lerning_rate: unknown key; did you mean"),
    ("1e-3", "-1", "8: tables[0].optimizer.learning_rate is -1; it must be greater than"),
    ("1e-3", ".nan", "8: tables[0].optimizer.learning_rate is nan; it must be"),
    ("2GiB", "2GuB", "2: memory_budget is '2GuB'; size is '2GuB'; it must be"),
    ("2GiB", "1KiB", "2: memory_budget is '1KiB'; it must be greater than or equal to 1048576"),
    ("data_dir: data\n", "", "data_dir is missing; it must be given"),
    ("data_dir", "shards: 0\ndata_dir", "1: shards is 0; a count of shards must be 1 to 1024"),
    ("data_dir", "shards: true\ndata_dir", "shards is True; it must be a count or a list of 'host:port'"),
    ("data_dir", "shards: []\ndata_dir", "it has 0 endpoints; it must have 1 to 1024"),
    ("data_dir", "shards: [a]\ndata_dir", "endpoint is 'a'; it must be host:port"),
    ("data_dir", "shards: ['a:1', 'a:1']\ndata_dir", "endpoint 'a:1' is there twice; each shard needs"),
    ("data_dir", "shards: 2\nbase_port: 65535\ndata_dir", "1: base_port 65535 + 2 shards ends at 65536"),
    ("data_dir", "host: a/b\ndata_dir", "endpoint is 'a/b:1'; it must be host:port"),
    ("data_dir", "durability: fsnyc\ndata_dir", "durability is 'fsnyc'; it must be 'none', 'os' or 'fsync'"),
    ("data_dir", "worker_treads: 2\ndata_dir", "1: worker_treads: unknown key; did you mean 'worker_"),
    ("data_dir: data", "data_dir: data: data", "1: not valid YAML"),
    ("data_dir: data", "data_dir: !!binary aaaa", "1: data_dir: tag 'tag:yaml.org,2002:binary' is not"),
    ("data_dir: data", "data_dir: &a [*a]", "1: the anchor 'a' refers to itself"),
    ("data_dir: data", "1: data", "1: a key is 1; it must be text"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), WRONG)
def test_wrong_configs_are_named(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert old in GOOD
    assert expected in message(GOOD.replace(old, new), tmp_path)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("dim: 16", "dim: 0").replace("2GiB", "1KiB")
    lines = message(text, tmp_path).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "5"]


def test_a_key_named_like_its_policy_is_not_taken_for_the_tag(tmp_path: Path) -> None:
    """pydantic puts the union's tag in the location; here the wrong key is that very word."""
    found = message(GOOD + "    eviction: [{kind: ttl, ttl: 3}]\n", tmp_path)
    assert "tables[0].eviction[0].ttl_s is missing" in found
    assert "tables[0].eviction[0].ttl: unknown key; did you mean 'ttl_s'?" in found


def test_a_policy_may_be_there_once(tmp_path: Path) -> None:
    twice = "    eviction: [{kind: ttl, ttl_s: 3}, {kind: ttl, ttl_s: 4}]\n"
    assert "policy 'ttl' is there twice; at most one of each kind" in message(GOOD + twice, tmp_path)


def test_a_table_name_may_be_there_once(tmp_path: Path) -> None:
    other = "  - {name: user, dim: 1, optimizer: {kind: sgd}}\n"
    assert "table 'user' is declared twice, as entries [0, 1]" in message(GOOD + other, tmp_path)


def test_no_tables(tmp_path: Path) -> None:
    assert "tables: it has 0 tables; it must have 1 to 1024" in message("data_dir: d\ntables: []", tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", " the config is empty"), ("[1]", "1: the config is a list"), ("3", "1: the config is an int")],
)
def test_a_config_that_is_no_mapping(text: str, kind: str, tmp_path: Path) -> None:
    assert message(text, tmp_path) == f"cluster.yaml:{kind}; it must be a mapping of keys"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), (5, 5), ("5", 5), ("5B", 5), ("1kb", 1000), ("1.5 KiB", 1536), ("2GiB", 2 << 30),
     ("0.1TB", 10**11), (" 3 MiB ", 3 << 20), ("0.3B", 0)],
)  # fmt: skip
def test_parse_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 G", "1e3", "1,5GB", -1, True, 1.5, None, "٣ MB"])
def test_parse_bytes_refuses(text: Any) -> None:
    with pytest.raises(ConfigError, match="size is"):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_parse_bytes_of_whole_numbers(size: int) -> None:
    assert parse_bytes(str(size)) == parse_bytes(size) == size
    assert parse_bytes(f"{size}KiB") == size * 1024


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [("a:1", ("a", 1)), ("[::1]:65535", ("::1", 65535)), ("10.0.0.1:0", ("10.0.0.1", 0))],
)
def test_split_endpoint(endpoint: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(endpoint) == parts


@pytest.mark.parametrize(
    "endpoint", ["", "a", "a:", ":1", "::1:2", "a:65536", "a:x", "a b:1", "a:-1", "[]:1"]
)
def test_split_endpoint_refuses(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        split_endpoint(endpoint)


def test_endpoints_of_a_count(tmp_path: Path) -> None:
    text = GOOD + "shards: 3\nhost: '::1'\nbase_port: 80\n"
    assert load(text, tmp_path).endpoints == ("[::1]:80", "[::1]:81", "[::1]:82")
    assert load(text.replace("80", "0"), tmp_path).endpoints == ("[::1]:0",) * 3


def test_shard_directories(tmp_path: Path) -> None:
    config = load(GOOD + "shards: 2\n", tmp_path)
    assert shard_directory(config, 1) == tmp_path / "data" / "shard-0001"
    for index in (-1, 2):
        with pytest.raises(ConfigError, match=f"shard is {index}; it must be 0 to 1"):
            shard_directory(config, index)
