# SPDX-License-Identifier: Apache-2.0
"""Configs that `prune` and `suggest` write: only the lines that must change do, and no id changes."""

import json
from pathlib import Path

import pytest
from rowhouse.document import parse_document

from feature_cross import load
from feature_cross.author.cli import main
from feature_cross.author.guard.diff import diff_configs
from feature_cross.author.rank import edit as edit_module
from feature_cross.author.rank.candidate import Candidate, declare, existing, pairs, triples
from feature_cross.author.rank.edit import add_features, declaration, remove_features
from feature_cross.config.loader import load_text
from feature_cross.config.plan import build_plan
from feature_cross.error import InternalError

CONFIG = """\
# head
ids: {slot_bits: 8}
features:   # block first, entities after it
  # group one
  a: {kind: attribute, slot: 1, of: user.a}   # of a
  b:
    kind: attribute
    slot: 2
    of: item.b

  # group two
  a_x_b: {kind: interaction, slot: 10, of: [user.a, item.b]}
  deep:
    kind: interaction
    slot: 11
    of:
      - a_x_b
      - seen.single
    # inside
  seen: {kind: combination, of: user.seen, size: 2, slots: {permutation: 20, single: 21, sorted: 22}}
  twin: {kind: attribute, share: b, of: item.c}
  other: {kind: attribute, share: b, of: item.d}
  # tail of features
entities:
  user: {attributes: {a: {type: int}, seen: {type: string, list: true}}}
  item: {attributes: {b: {type: int}, c: {type: int}, d: {type: int}}}
"""


def removed(*names: str, text: str = CONFIG) -> tuple[str, dict[str, str]]:
    """The new text, once it is shown that all that stays has its ids."""
    new, renamed = remove_features(text, "c.yaml", set(names))
    found = diff_configs(load_text(text), load_text(new))
    assert {one.old_name for one in found.features if one.status == "removed"} == set(names)
    assert not [one for one in found.features if one.status == "added"]
    assert all(one.effect == "none" for one in found.features if one.status != "removed")
    return new, renamed


def lines_of(old: str, new: str) -> tuple[list[str], list[str]]:
    before, after = old.splitlines(), new.splitlines()
    return [line for line in before if line not in after], [line for line in after if line not in before]


def test_a_feature_of_one_line_or_many_goes_and_comments_stay() -> None:
    new, _ = removed("a", "deep")
    gone, come = lines_of(CONFIG, new)
    assert come == [] and gone[0].startswith("  a: {kind") and "    of:" in gone
    assert "  # group one" in new and "    # inside" in new and "  # tail of features" in new


def test_what_others_derive_from_stays_without_output() -> None:
    new, _ = removed("a_x_b")
    gone, come = lines_of(CONFIG, new)
    assert come == ["  a_x_b: {kind: interaction, of: [user.a, item.b], emit: false}"] and len(gone) == 1
    new, _ = removed("a_x_b", "deep")
    assert "a_x_b" not in new


def test_a_shared_slot_goes_to_the_first_that_shares_it() -> None:
    new, _ = removed("b")
    plan, before = build_plan(load_text(new)), build_plan(load_text(CONFIG))
    assert plan.node("twin").slot == plan.node("other").slot == 2
    assert plan.node("twin").seed == plan.node("other").seed == before.node("b").seed
    assert "share: twin" in new and "  a: {kind: attribute, slot: 1, of: user.a}   # of a" in new
    plan = build_plan(load_text(removed("b", "twin")[0]))
    assert plan.node("other").slot == 2 and plan.node("other").seed == before.node("b").seed


def test_some_forms_of_a_combination_go() -> None:
    new, renamed = removed("seen.sorted")
    assert renamed == {"seen.permutation": "seen_permutation", "seen.single": "seen_single"}
    features = load_text(new).features
    assert set(features) >= {"seen_permutation", "seen_single"} and "seen" not in features
    assert "seen_single" in new.split("deep:")[1]  # what derives from it follows its name
    new, renamed = removed("seen.single", "seen.permutation")
    assert load_text(new).features["seen_single"].emit is False  # deep derives from it
    assert build_plan(load_text(new)).node("seen_sorted").sizes == (2,)
    new, _ = removed("seen.single", "seen.permutation", "seen.sorted", "deep")
    assert "seen:" not in new.split("entities:")[0]


def test_limits_of_a_split_combination_stay_where_they_mean_something() -> None:
    text = CONFIG.replace("size: 2, slots", "limit: 50, past_limit: cut, size: 2, slots")
    new, _ = removed("seen.sorted", text=text)
    plan = build_plan(load_text(new))
    assert plan.node("seen_single").limit == 50 and not plan.node("seen_permutation").limited


def test_a_hidden_feature_keeps_the_seed_that_it_shared() -> None:
    text = CONFIG.replace("of: [user.a, item.b]", "of: [user.a, twin]")
    new, _ = removed("twin", text=text)
    assert build_plan(load_text(new)).node("twin").seed == build_plan(load_text(text)).node("b").seed


@pytest.mark.parametrize("style", ["json", "flow", "anchor"])
def test_a_text_that_is_no_block_of_lines_keeps_its_form(style: str) -> None:
    text = CONFIG
    if style == "json":
        text = json.dumps(parse_document(CONFIG, "c.yaml").value)
    elif style == "flow":
        text = "entities: {u: {attributes: {a: {type: int}, b: {type: int}}}}\n"
        text += "features: {a: {kind: attribute, of: u.a}, b: {kind: attribute, of: u.b}}\n"
    else:
        text = CONFIG.replace("slot: 1, of: user.a}", "slot: 1, of: &first user.a}").replace(
            "[user.a, item.b]", "[*first, item.b]"
        )
    new, _ = removed("a", text=text)
    assert "a" not in load_text(new).features
    if style == "json":
        assert list(json.loads(new)["features"]) == ["b", "a_x_b", "deep", "seen", "twin", "other"]
    elif style == "flow":
        assert new == text.replace("a: {kind: attribute, of: u.a}, ", "")
    else:
        gone = "  a: {kind: attribute, slot: 1, of: &first user.a}   # of a\n"
        assert new == text.replace(gone, "").replace("[*first, item.b]", "[user.a, item.b]")


def test_features_are_added_after_the_last_one() -> None:
    new = add_features(
        CONFIG, "c.yaml", {"n": {"kind": "attribute", "slot": 40, "of": "item.d"}}, {"n": "why"}
    )
    gone, come = lines_of(CONFIG, new)
    assert gone == [] and come == ["  # why", "  n: {kind: attribute, slot: 40, of: item.d}"]
    assert new.index("other:") < new.index("# why") < new.index("# tail of features") < new.index("entities:")
    flow = "features: {a: {kind: attribute, of: u.a}}\nentities: {u: {attributes: {a: {type: int}}}}\n"
    new = add_features(flow, "c.yaml", {"n": {"kind": "attribute", "of": "u.a"}})
    assert set(load_text(new).features) == {"a", "n"}


def test_a_text_that_would_change_an_id_is_never_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit_module._Edit, "_hand_over_shares", lambda self, made: None)
    monkeypatch.setattr(edit_module, "edit", lambda *_: CONFIG.replace("slot: 10", "slot: 12"))
    with pytest.raises(InternalError, match="a_x_b: the new config would change its ids"):
        remove_features(CONFIG, "c.yaml", {"a"})


def test_declarations_are_yaml() -> None:
    body = {"kind": "weak", "slot": 3, "of": ["a.b", "c.d"]}
    assert declaration("n", body) == "n: {kind: weak, slot: 3, of: [a.b, c.d]}"


def test_candidates_are_each_pair_and_triple_once() -> None:
    two = pairs(["u.b", "u.a", "i.c"], ["u.l"])
    assert [one.label for one in two] == [
        "i.c x u.a", "i.c x u.b", "u.a x u.b", "order of u.l", "2 of u.l",
    ]  # fmt: skip
    three = triples(two, ["u.a", "u.b", "i.c", "u.l"])
    assert [one.label for one in three] == [
        "i.c x u.a x u.b", "i.c x u.a x u.l", "i.c x u.b x u.l", "u.a x u.b x u.l", "3 of u.l",
    ]  # fmt: skip


def test_what_a_config_has_is_no_candidate() -> None:
    assert {one.label for one in existing(build_plan(load_text(CONFIG)))} == {
        "item.b x user.a", "order of user.seen", "2 of user.seen",
    }  # fmt: skip


def test_candidates_are_declared_with_family_slot_and_a_free_name() -> None:
    config = load_text(CONFIG.replace("c: {type: int}", "c: {type: int}, a: {type: int}"))
    chosen = [
        Candidate(("item.b", "user.a")), Candidate(("item.b", "item.c")), Candidate(("item.b", "user.seen")),
        Candidate(("item.a", "user.a")), Candidate(("user.seen", "user.seen")), Candidate(("user.seen",)),
    ]  # fmt: skip
    assert declare(config, build_plan(config), chosen, {"user.seen": 5}) == {
        "b_x_a": {"kind": "interaction", "slot": 23, "of": ["item.b", "user.a"]},
        "b_x_c": {"kind": "categorical", "slot": 24, "of": ["item.b", "item.c"]},
        "b_x_seen": {"kind": "weak", "slot": 25, "of": ["item.b", "user.seen"]},
        "item_a_x_user_a": {"kind": "interaction", "slot": 26, "of": ["item.a", "user.a"]},
        "seen_pairs": {  # a row of five has ten pairs
            "kind": "combination",
            "form": "sorted",
            "size": 2,
            "slot": 27,
            "of": "user.seen",
            "limit": 16,
            "past_limit": "cut",
        },
        "seen_order": {"kind": "combination", "form": "permutation", "slot": 28, "of": "user.seen"},
    }
    plain = load(
        {
            "entities": {"u": {"attributes": {"a": {"type": "int"}, "b": {"type": "int"}}}},
            "features": {"a_x_b": {"kind": "attribute", "of": "u.a"}},
        }
    )
    made = declare(plain, build_plan(plain), [Candidate(("u.a", "u.b"))] * 3, {})
    assert list(made) == ["u_a_x_u_b", "u_a_x_u_b_2", "u_a_x_u_b_3"] and "slot" not in made["u_a_x_u_b"]


def test_slots_of_removed_features_that_a_lock_knows_are_not_given_out(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.replace("  # group two", "  gone: {kind: attribute, slot: 90, of: item.c}"))
    assert main(["lock", str(path)]) == 0
    path.write_text(CONFIG)
    assert main(["lock", str(path)]) == 0
    config = load(path)
    made = declare(config, build_plan(config), [Candidate(("item.b", "user.seen"))], {})
    assert made["b_x_seen"]["slot"] == 91
