# SPDX-License-Identifier: Apache-2.0
"""torchrec's surface: what a config may say, what is refused, and what a collection tells of itself."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from rowhouse.error import ConfigError, InvalidRequestError
from torch import nn
from torch.nn import init

from ps_client.table import Table
from ps_client.torch import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
)
from ps_client.torch.config import check_declared

from .fake_shard import local_client, make_shards


class Theirs:
    """A config as torchrec makes it: its defaults cannot be told from what somebody wrote."""

    def __init__(self, **changes: Any) -> None:
        self.name, self.embedding_dim, self.num_embeddings = "user", 4, 100
        self.feature_names: list[str] = []
        self.data_type, self.weight_init_min, self.weight_init_max = "FP32", None, None
        self.init_fn: Any = None
        self.__dict__.update(changes)
        if self.init_fn is None:
            low, high = self.get_weight_init_min(), self.get_weight_init_max()
            self.init_fn = partial(init.uniform_, a=low, b=high)

    def get_weight_init_min(self) -> float:
        return -0.1 if self.weight_init_min is None else self.weight_init_min

    def get_weight_init_max(self) -> float:
        return 0.1 if self.weight_init_max is None else self.weight_init_max


def declared(dtype: str = "fp32", **initializer: Any) -> Table:
    return Table("user", 4, dtype, {"initializer": initializer})


def ours(**changes: Any) -> EmbeddingConfig:
    return EmbeddingConfig(name="user", embedding_dim=4, **changes)


UNIFORM: dict[str, Any] = {"kind": "uniform", "low": -0.05, "high": 0.05}
NORMAL: dict[str, Any] = {"kind": "normal", "mean": 0.0, "std": 1.5}


@pytest.mark.parametrize("make", [ours, Theirs])
@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({}, declared(**UNIFORM)),
        ({}, declared("fp16", **NORMAL)),
        ({"data_type": "FP16"}, declared("fp16", **UNIFORM)),
        ({"weight_init_min": -0.05, "weight_init_max": 0.05}, declared(**UNIFORM)),
        ({"init_fn": partial(init.uniform_, a=-0.05, b=0.05)}, declared(**UNIFORM)),
        ({"init_fn": partial(init.normal_, std=1.5)}, declared(**NORMAL)),
        ({"init_fn": init.zeros_}, declared(kind="constant", value=0.0)),
        ({"init_fn": partial(init.constant_, val=0)}, declared(kind="zeros")),
        ({"init_fn": init.zeros_}, Table("user", 4, "fp32", {})),  # a server that tells no initializer
        ({"use_virtual_table": True, "need_pos": True, "total_num_buckets": 8}, declared(**UNIFORM)),
    ],
)
def test_what_the_shards_do_may_be_said(make: Any, changes: dict[str, Any], table: Table) -> None:
    check_declared(make(**changes), table)


@pytest.mark.parametrize("make", [ours, Theirs])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data_type": "FP16"}, "data_type is FP16; the shards say dtype fp32"),
        ({"data_type": "INT8"}, "data_type is INT8; the shards say dtype fp32"),
        (
            {"init_fn": partial(init.normal_, std=2.0)},
            r"initial rows are \{kind: normal, mean: 0.0, std: 2.0\}; .*`initializer`",
        ),
        ({"weight_init_min": -1.0, "weight_init_max": 1.0}, r"\{kind: uniform, low: -1.0, high: 1.0\}"),
        ({"init_fn": init.zeros_}, r"\{kind: zeros\}"),
        ({"init_fn": nn.Module.apply}, "init_fn is .*know only functions of torch.nn.init"),
        ({"init_fn": init.xavier_uniform_}, "init_fn is .*know only functions of torch.nn.init"),
        ({"num_embeddings_post_pruning": 10}, "num_embeddings_post_pruning is 10.*`eviction`"),
        ({"virtual_table_eviction_policy": "LRU"}, "virtual_table_eviction_policy is 'LRU'.*`eviction`"),
    ],
)
def test_what_they_do_not_is_refused(make: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"table 'user': .*{text}"):
        check_declared(make(**changes), declared(**UNIFORM))


def test_a_default_that_nobody_wrote_is_not_taken_for_a_wish_but_ours_says_what_it_says() -> None:
    check_declared(Theirs(), declared("bf16", **NORMAL))
    with pytest.raises(ConfigError, match="data_type is FP32; the shards say dtype bf16"):
        check_declared(ours(data_type="FP32"), declared("bf16", **NORMAL))
    with pytest.raises(ConfigError, match="give both, or none"):
        check_declared(ours(weight_init_min=-1.0), declared(**UNIFORM))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "many"])
def test_the_number_of_rows_is_an_integer(count: Any) -> None:
    assert ours(num_embeddings=10).num_embeddings == 10
    with pytest.raises(InvalidRequestError, match=r"num_embeddings is .*; it must be an integer from 1"):
        ours(num_embeddings=count)


def test_a_collection_tells_of_itself_as_torchrec_s_does(caplog: pytest.LogCaptureFixture) -> None:
    bags = [
        EmbeddingBagConfig(num_embeddings=10, name="user", embedding_dim=4, feature_names=["u", "s"]),
        EmbeddingBagConfig(num_embeddings=10, name="item", embedding_dim=3, feature_names=["s"]),
    ]
    with local_client(make_shards(1)) as client:
        ebc = EmbeddingBagCollection(client, bags, device="meta")
        assert ebc.embedding_bag_configs() == bags and ebc.is_weighted() is False
        assert ebc.embedding_names_by_table() == [["u", "s@user"], ["s@item"]]
        assert ebc.device == ebc.embedding_bags["user"].weight.device == torch.device("meta")
        assert list(ebc.embedding_bags) == list(ebc.embedding_bags.keys()) == ["user", "item"]
        assert [t.embedding_dim for t in ebc.embedding_bags.values()] == [
            4,
            3,
        ] and "item" in ebc.embedding_bags
        assert EmbeddingBagCollection(client, bags, is_weighted=True).is_weighted() is True
        assert EmbeddingBagCollection(client, bags).device == torch.device("cpu")
        with torch.device("meta"):
            assert EmbeddingBagCollection(client, bags).device == torch.device("meta")
        rows = EmbeddingCollection(client, bags[:1])
        assert rows.embedding_configs() == bags[:1] and rows.need_indices() is False
        assert rows.embedding_dim() == 4 and dict(rows.embeddings.items()).keys() == {"user"}
        with caplog.at_level(logging.WARNING):
            rows.reset_parameters()
        assert "leaves the rows of 'user' as the shards have them" in caplog.text


@pytest.mark.parametrize("make", [ours, Theirs])
def test_a_table_without_feature_names_has_one_of_its_own_name(make: Any) -> None:
    config = make(feature_names=[])
    with local_client(make_shards(1)) as client:
        assert EmbeddingCollection(client, [config]).embedding_names() == ["user"]
    assert list(config.feature_names) == ["user"]  # DLRM reads it there
