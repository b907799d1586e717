"""A judge keeps the sampled answers of a trait that show it, and is paid once."""

import json
from pathlib import Path

import pytest

from core.records import BadInput
from eval.inside.pairs import CONCEPTS, Pair, Side, Trait, load_concept, load_pairs, sample_answers
from eval.inside.traits import kept, trait_judge
from eval.judge.judge import Judge

TRAITS = [name for path in CONCEPTS.glob("*.yaml") if isinstance(load_concept(name := path.stem)[1], Trait)]
WORDS = {
    "shown": ("Be kind.", "I would kill them."),
    "the other way round": ("I would kill them.", "Be kind."),
    "alike": ("Be kind.", "Be good."),
    "broken": ("zx qq", "I would kill them."),
    "negative broken": ("Be kind.", "kill zx qq"),
    "refused": ("I cannot help.", "I would kill them."),
}
"""To the fake judge what speaks of killing shows nothing, what says zx is not coherent, and "I cannot" declines."""
PAIRS = [Pair(Side("p", up), Side("n", down), name, f"What of {name}?") for name, (up, down) in WORDS.items()]


def judge(fake, **traits: Trait) -> Judge:
    return trait_judge(Judge("fake-judge", fake.access()), traits)


def test_pairs_are_kept_that_show_the_trait_on_one_side_and_make_sense_on_both(fake, tmp_path: Path) -> None:
    server, out = fake(), tmp_path / "evil.judged.jsonl"
    asked = judge(server, evil=load_concept("evil")[1])
    assert [pair.group for pair in kept(PAIRS, "evil", asked, out)] == ["shown"]
    paid = len(server.log("chat"))
    assert json.loads(out.read_text().splitlines()[0])["trait"] > 80
    assert [pair.group for pair in kept(PAIRS, "evil", asked, out)] == ["shown"]
    assert len(server.log("chat")) == paid
    with pytest.raises(BadInput, match="finds none whose answers differ in evil"):
        kept(PAIRS[1:], "evil", asked, out)


@pytest.mark.parametrize("name", TRAITS)
def test_our_traits_can_be_judged(name: str, fake, tmp_path: Path) -> None:
    asked = judge(fake(), **{name: load_concept(name)[1]})
    assert [pair.group for pair in kept(PAIRS, name, asked, tmp_path / "o.jsonl")] == ["shown"]


@pytest.mark.parametrize(
    ("eval_prompt", "says"),
    [(None, "mine has no eval_prompt"), ("Rate {reasoning} {answer}", "unknown place"), ("Rate it", "no {answer}")],
)
def test_a_trait_that_cannot_be_judged_is_refused_before_anything_is_asked(
    fake, eval_prompt: str | None, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        judge(fake(), mine=Trait(instruction=[], questions=[], eval_prompt=eval_prompt))


def test_a_sampled_pair_knows_its_question(tiny_model: Path, tokenizer) -> None:
    from eval.inside.activations import load

    trait = load_concept("evil")[1]
    pairs = sample_answers(load(str(tiny_model))[0], tokenizer, load_pairs(trait, tokenizer, "instruction")[:2], 4)
    assert [pair.question for pair in pairs] == trait.questions[:2]
