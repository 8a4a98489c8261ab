# SPDX-License-Identifier: Apache-2.0
"""What an example is: the files of its folder, read and checked.

A folder under examples/ holds `log.py` (makes the training and the test part of the log), `crosses.yaml`
(feature_cross), `cluster.yaml` (ps_server's tables) and `recipe.yaml` (the model, described here).
Thread safety: a recipe is immutable.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from rowhouse.document import read_document
from rowhouse.validation import validate

import feature_cross

EXAMPLES: Final = ("click", "retail", "dota2")
FOLDER: Final = Path(__file__).resolve().parent

SINGLE: Final = "single"
"""The family of tables that hold no crosses; the arm without crosses trains these alone."""

MIRROR: Final = "mirror_"
"""Prefix of a feature's ids in the mirrored view."""

Arm = Literal["without", "with"]
ARMS: Final[tuple[Arm, ...]] = ("without", "with")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableUse(_Model):
    """How the model uses one table.

    Attributes
    ----------
    part
        wide: dim 1, pooled rows are added to the logit. deep: pooled rows go into the MLP.
    family
        Kind of its features: single columns, or a family of crosses.
    features
        Names from crosses.yaml.
    pooling
        How a bag becomes one vector.
    """

    part: Literal["wide", "deep"]
    family: Literal["single", "categorical", "interaction", "combination", "weak"]
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    pooling: Literal["sum", "mean"] = "sum"


class Recipe(_Model):
    """The model of one example and how it is trained.

    Attributes
    ----------
    label
        Column of the log, 0 or 1.
    tables
        By the table's name in cluster.yaml.
    mirror
        Columns that change places in the mirrored view; the logit is then f(view) - f(mirrored view).
        Empty: no such view.
    epochs
        Passes over the training part.
    hidden
        Width of the MLP's one hidden layer.
    dense_learning_rate
        Of Adam, for the MLP and the bias.
    batch_size
        Examples per step and trainer.
    """

    label: str
    tables: Annotated[dict[str, TableUse], Field(min_length=1)]
    mirror: dict[str, str] = {}
    epochs: Annotated[int, Field(ge=1)] = 1
    hidden: Annotated[int, Field(ge=1)] = 32
    dense_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 2048

    @model_validator(mode="after")
    def _has_singles(self) -> "Recipe":
        if not self.arm_tables("without"):
            raise ValueError(f"no table has family {SINGLE}; the arm without crosses would be empty")
        return self

    def arm_tables(self, arm: Arm) -> dict[str, TableUse]:
        """The tables that an arm trains, by name."""
        return {n: t for n, t in self.tables.items() if arm == "with" or t.family == SINGLE}

    def features(self, arm: Arm = "with") -> list[str]:
        """Features of an arm, each once, mirrored ones after their originals."""
        names = list(dict.fromkeys(f for t in self.arm_tables(arm).values() for f in t.features))
        return names + [MIRROR + name for name in names] if self.mirror else names


class Example:
    """One example's folder.

    Parameters
    ----------
    name
        One of EXAMPLES.
    """

    def __init__(self, name: str) -> None:
        if name not in EXAMPLES:
            raise ValueError(f"example is {name!r}; it must be one of {', '.join(EXAMPLES)}")
        self.name = name
        self.folder = FOLDER / name
        self.recipe = validate(Recipe, read_document(self.folder / "recipe.yaml"))

    @property
    def log(self) -> ModuleType:
        """The module `log.py`: `make(data, rows, seed) -> (train, test)`, both pyarrow tables."""
        return importlib.import_module(f"examples.{self.name}.log")

    def crosses(self) -> feature_cross.CrossConfig:
        """The checked crosses.yaml."""
        return feature_cross.load(self.folder / "crosses.yaml")

    def cluster(self, runs: list["Run"], data_dir: Path) -> dict[str, Any]:
        """A cluster config with its own copy of each table for each run.

        Parameters
        ----------
        runs
            Trainings that share the cluster. Each has its own tables, seeded by the run's seed.
        data_dir
            Folder of the shards.

        Returns
        -------
        dict
            What `ps-server up` reads, as plain YAML values. The ports are left to the system.
        """
        config = read_document(self.folder / "cluster.yaml").value
        declared = {table["name"]: table for table in config["tables"]}
        tables = [
            {**declared[name], "name": run.table(name), "seed": run.seed}
            for run in runs
            for name in self.recipe.arm_tables(run.arm)
        ]
        return {**config, "tables": tables, "data_dir": str(data_dir), "base_port": 0}


class Run(_Model):
    """One training: an arm and a seed.

    Attributes
    ----------
    arm
        Without crosses or with them.
    seed
        Of initial rows, initial dense weights and the order of examples.
    own_tables
        Whether the cluster holds tables for this run alone, named `table.arm-seed`.
    """

    arm: Arm
    seed: Annotated[int, Field(ge=0)]
    own_tables: bool = True

    @property
    def name(self) -> str:
        """arm-seed"""
        return f"{self.arm}-{self.seed}"

    def table(self, name: str) -> str:
        """Name in the cluster of the recipe's table `name`."""
        return f"{name}.{self.name}" if self.own_tables else name
