# SPDX-License-Identifier: Apache-2.0
"""`check` on features that say the same of every row, under two names."""

import pytest

from feature_cross.author.check.lint import check_config
from feature_cross.config.loader import load_text
from feature_cross.config.plan import build_plan

CONFIG = """\
ids: {slot_bits: 8}
entities:
  u:
    attributes:
      a: {type: int}
      a_again: {type: int, column: a}
      a_known: {type: int, column: a, missing: own_id}
      b: {type: string}
      b_lower: {type: string, column: b, normalise: [lower]}
      c: {type: float, column: a, buckets: {edges: [1.5]}}
      l: {type: int, list: true, max_length: 5}
features:
  hidden: {kind: categorical, of: [u.a, u.b], emit: false}
  one: ONE
  two: TWO
"""

SAME = [
    ("{kind: attribute, of: u.a}", "{kind: attribute, of: u.a}"),
    ("{kind: attribute, of: u.a}", "{kind: attribute, of: u.a_again}"),
    ("{kind: categorical, of: [u.a, u.b]}", "{kind: categorical, of: [u.a, u.b]}"),
    ("{kind: categorical, of: [u.a, u.b]}", "{kind: categorical, of: [u.b, u.a], seed: other}"),
    ("{kind: categorical, of: [hidden, u.l]}", "{kind: categorical, of: [hidden, u.l]}"),
    (
        "{kind: combination, form: sorted, size: 2, of: u.l}",
        "{kind: combination, form: sorted, size: 2, of: u.l}",
    ),
    (
        "{kind: categorical, of: [u.l, u.b], limit: 3}",
        "{kind: categorical, of: [u.l, u.b], limit: 3}",
    ),
    (
        "{kind: attribute, of: u.a, when: {u.b: {any_of: [x]}, u.c: {below: 3}}}",
        "{kind: attribute, of: u.a, when: {u.c: {below: 3}, u.b: {any_of: [x]}}}",
    ),
]  # fmt: skip

DIFFERENT = [
    ("{kind: attribute, of: u.a}", "{kind: attribute, of: u.b}"),
    ("{kind: attribute, of: u.a}", "{kind: attribute, of: u.a_known}"),
    ("{kind: attribute, of: u.a}", "{kind: attribute, of: u.c}"),
    ("{kind: attribute, of: u.b}", "{kind: attribute, of: u.b_lower}"),
    ("{kind: attribute, of: u.a}", "{kind: attribute, of: u.a, when: {u.b: {any_of: [x]}}}"),
    (
        "{kind: attribute, of: u.a, when: {u.b: {any_of: [y]}}}",
        "{kind: attribute, of: u.a, when: {u.b: {any_of: [x]}}}",
    ),
    ("{kind: categorical, of: [u.a, u.b]}", "{kind: categorical, of: [u.a, u.b], emit: false}"),
    ("{kind: categorical, of: [u.l, u.b], limit: 3}", "{kind: categorical, of: [u.b, u.l], limit: 3}"),
    ("{kind: combination, form: sorted, of: u.l}", "{kind: combination, form: permutation, of: u.l}"),
    (
        "{kind: combination, form: sorted, size: 2, of: u.l}",
        "{kind: combination, form: sorted, size: 3, of: u.l}",
    ),
    (
        "{kind: combination, form: sorted, size: 2, of: u.l}",
        "{kind: combination, form: sorted, size: 2, multiset: true, of: u.l}",
    ),
]  # fmt: skip


def problems(one: str, two: str) -> list[tuple[str, int | None, str]]:
    """`same-cross` of a config with two features."""
    text = CONFIG.replace("ONE", one.replace("{kind", "{slot: 1, kind"))
    config = load_text(text.replace("TWO", two if "emit" in two else two.replace("{kind", "{slot: 2, kind")))
    found = [p for p in check_config(config, build_plan(config)) if p.code == "same-cross"]
    assert all(p.severity == "warning" for p in found)
    return [(p.message, p.line, p.code) for p in found]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_two_names_of_one_cross_are_a_warning_at_the_second(one: str, two: str) -> None:
    ((message, line, _),) = problems(one, two)
    assert message.startswith("two is the same cross as one: the same parts, conditions and settings, so")
    assert line == 15


@pytest.mark.parametrize(("one", "two"), DIFFERENT)
def test_what_differs_in_anything_but_name_seed_and_slot_is_not(one: str, two: str) -> None:
    assert not problems(one, two)


def test_of_two_in_a_row_the_later_in_the_file_is_told() -> None:
    """Although the earlier one runs after it, for what it derives from."""
    text = CONFIG.replace("ONE", "{kind: categorical, of: [later, u.l], slot: 1}")
    text = text.replace("TWO", "{kind: categorical, of: [hidden, u.l], slot: 2}")
    config = load_text(text + "  later: {kind: categorical, of: [u.b, u.a], emit: false}\n")
    (found,) = [p for p in check_config(config, build_plan(config)) if p.code == "same-cross"]
    assert found.message.startswith("two is the same cross as one")


def test_a_third_one_is_told_beside_the_first() -> None:
    text = CONFIG.replace("ONE", "{kind: attribute, of: u.a, slot: 1}").replace(
        "TWO", "{kind: attribute, of: u.a, slot: 2}\n  three: {kind: attribute, of: u.a, slot: 3}"
    )
    config = load_text(text)
    found = [p.message for p in check_config(config, build_plan(config)) if p.code == "same-cross"]
    assert [message.partition(":")[0] for message in found] == [
        "two is the same cross as one", "three is the same cross as one",
    ]  # fmt: skip
