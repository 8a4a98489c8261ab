# SPDX-License-Identifier: Apache-2.0
"""`feature-cross plot`: which files, what is in them, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from feature_cross import load
from feature_cross.author.estimate.report import Estimate, read_estimate
from feature_cross.author.plot.chart import (
    LINES_MAX,
    cardinality_figure,
    collision_figure,
    frequency_figure,
    growth_figure,
)
from feature_cross.author.plot.graph import NODES_MAX, graph_figure
from feature_cross.author.plot.style import _apart
from feature_cross.config.plan import build_plan
from tests.cross_files import run

NAMES = ["graph", "cardinality", "frequency", "growth", "collision"]
CONFIG = """\
ids: {slot_bits: 8}
entities:
  user: {attributes: {id: {type: int, column: user}, city: {type: string}}}
  item: {attributes: {category: {type: string}}}
features:
  user: {kind: attribute, slot: 1, of: user.id}
  hidden: {kind: interaction, emit: false, of: [user.city, item.category]}
  deep: {kind: weak, slot: 2, of: [user.id, hidden]}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    data = {
        "user": random.zipf(1.5, 20_000).clip(0, 10**6),
        "city": random.choice(["a", "b", "c"], 20_000),
        "category": random.choice([f"c{n}" for n in range(30)], 20_000),
    }
    pa.parquet.write_table(pa.table(data), tmp_path / "t.parquet")
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def estimate(files: Path, capsys: pytest.CaptureFixture[str]) -> Estimate:
    assert run("estimate", files / "c.yaml", files / "t.parquet", "--rows", "1e6", "--json") == 0
    (files / "e.json").write_text(capsys.readouterr().out)
    return read_estimate(files / "e.json")


def words(figure: Figure) -> str:
    """Everything that a figure says."""
    figure.draw_without_rendering()
    found: list[Any] = [*figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(text.get_text() for text in found)


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
@pytest.mark.parametrize("source", ["t.parquet", "e.json"])
def test_five_files_are_written(
    files: Path,
    estimate: Estimate,
    suffix: str,
    magic: bytes,
    source: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = files / "new" / "figures"
    assert run("plot", files / "c.yaml", files / source, "--out", out, "--format", suffix, "--json") == 0
    written = [Path(path) for path in json.loads(capsys.readouterr().out)["files"]]
    assert [path.name for path in written] == [f"{name}.{suffix}" for name in NAMES]
    assert all(path.read_bytes().startswith(magic) for path in written)


def test_the_graph_names_entities_attributes_features_slots_and_counts(
    files: Path, estimate: Estimate
) -> None:
    said = words(graph_figure(build_plan(load(str(files / "c.yaml"))), estimate))
    for word in ("user", "item", "id", "city", "category", "deep", "hidden", "slot 2"):
        assert word in said.split("\n") or any(word in line for line in said.split("\n"))
    assert "past" not in said, "an edge's place in a column is no node"
    assert "interaction: entities meet" in said and "combination" not in said


def test_the_graph_of_a_config_alone_has_no_counts(files: Path) -> None:
    assert "slot 2" in words(graph_figure(build_plan(load(str(files / "c.yaml"))), None)).split("\n")


def test_a_large_graph_says_what_it_leaves_out() -> None:
    features = {f"f{n}": {"kind": "attribute", "of": "e.a"} for n in range(NODES_MAX + 7)}
    config = load({"entities": {"e": {"attributes": {"a": {"type": "int"}}}}, "features": features})
    figure = graph_figure(build_plan(config), None)
    assert "7 more features are not drawn" in words(figure)
    assert figure.get_size_inches()[1] < 100, "150 features are still a page"


def test_charts_show_the_numbers_of_the_document(estimate: Estimate) -> None:
    deep = next(one for one in estimate.features if one.name == "deep")
    assert deep.projection is not None
    bars = cardinality_figure(estimate).axes[0]
    widths = {round(patch.get_width(), 3) for patch in bars.patches if isinstance(patch, Rectangle)}
    assert {round(deep.distinct, 3), round(deep.projection.distinct, 3)} <= widths
    growth = growth_figure(estimate).axes[0].get_lines()
    assert any(line.get_ydata()[-1] == pytest.approx(deep.projection.distinct) for line in growth)  # type: ignore[index]
    frequency = frequency_figure(estimate).axes[0].get_lines()
    assert any(line.get_ydata()[0] == pytest.approx(deep.distinct, rel=0.01) for line in frequency)  # type: ignore[index]
    assert "56 bits, here" in words(collision_figure(estimate))


def test_more_features_than_lines_are_said_to_be_left_out(estimate: Estimate) -> None:
    many = [
        estimate.features[1].model_copy(update={"name": f"f{n}", "distinct": 10.0 + n, "projection": None})
        for n in range(LINES_MAX + 3)
    ]
    wide = estimate.model_copy(update={"features": tuple(many), "rows_projected": None})
    for draw in (growth_figure, frequency_figure):
        assert f"the {LINES_MAX} largest of {LINES_MAX + 3} features" in words(draw(wide))
    assert "largest of" not in words(cardinality_figure(wide))


def test_an_estimate_of_another_config_is_refused(
    files: Path, estimate: Estimate, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "other.yaml").write_text(CONFIG.replace("deep:", "deeper:"))
    assert run("plot", files / "other.yaml", files / "e.json", "--out", files / "o") == 1
    assert "no feature 'deeper'" in capsys.readouterr().err
    assert not (files / "o").exists()


def test_a_folder_that_cannot_be_is_named(
    files: Path, estimate: Estimate, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "file").write_text("")
    assert run("plot", files / "c.yaml", files / "e.json", "--out", files / "file") == 2
    assert f"--out is {files / 'file'}, which is a file" in capsys.readouterr().err


def test_without_matplotlib_the_error_says_what_to_install(
    files: Path, estimate: Estimate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "feature_cross.author.command.plot", raising=False)
    assert run("plot", files / "c.yaml", files / "e.json", "--out", files / "o") == 2
    assert "pip install 'rowhouse-ps[author]'" in capsys.readouterr().err


def test_data_without_any_id_is_nothing_to_draw(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("user", "city", "category")
    nulls = pa.table({name: pa.nulls(3, pa.int64() if name == "user" else pa.string()) for name in names})
    pa.parquet.write_table(nulls, files / "nulls.parquet")
    assert run("plot", files / "c.yaml", files / "nulls.parquet", "--out", files / "o") == 1
    assert "no feature has any id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("positions", "placed"),
    [
        ([0.0, 100.0], [0.0, 100.0]),
        ([0.0, 1.0], [-4.5, 5.5]),
        ([0.0, 0.0, 0.0, 50.0], [-10.0, 0.0, 10.0, 50.0]),
        ([], []),
    ],
)
def test_labels_are_pushed_apart_and_no_further(positions: list[float], placed: list[float]) -> None:
    assert _apart(np.array(positions), 10.0).tolist() == pytest.approx(placed)
