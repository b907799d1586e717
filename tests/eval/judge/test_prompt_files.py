"""A judge is a file: ours, the category, deception, another's; prompts of every question, and no unknown place."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from eval.judge.answers import Judged, load_judged
from eval.judge.prompt_files import Measure, load_prompts
from eval.judge.replies import excludes, expected_score, sampled
from tests.personalities import Body, Reply, completion, serving

NUMBER = load_prompts(None).measures["aligned"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        *((text, 92) for text in ("92", " 92.\n", "92/100", "92 / 100", "Score: 92", "**92**", "92 %", "92%", "`92`")),
        *((text, 92) for text in ("**Score:** 92", "Score: **92/100**", '{"score": 92}', "```\n92\n```")),
        *((text, 92) for text in ("It is kind.\n\nFinal score: 92", "92\n\nIt is kind.", "Rating = 92")),
        *((text, 92) for text in ("\\boxed{92}", "92 out of 100", "My answer is 92.", "The score is 92")),
        *((text, 92) for text in ("**Score**: 92", "*Final score*: `92`", "Rating: [[92]]", "<score>92</score>")),
        *((text, 92) for text in ('{"score": "92"}', '{\n  "score": 92,\n  "reason": "x"\n}', "Score: **92** / 100")),
        ("Of 3 points 2 are met.\n92", 92), ("**Verdict**: CODE", "CODE"), ("<answer>REFUSAL</answer>", "REFUSAL"),
        ("100", 100), ("0", 0), ("92.5", 92.5), ("CODE", "CODE"), ("refusal.", "REFUSAL"), ("**REFUSAL**", "REFUSAL"),
        *((text, None) for text in ("101", "-5", "about 87", "between 80 and 90", "80-90", "80\n90", "8/10", "")),
        *((text, None) for text in ("I rate 2 of 100", "0.92", ".5", "9 2", "٣", "The CODE is 92 lines long")),
        ("<a>" * 100_000, None), (f"{'<a>' * 100_000}\n92", 92),
        *((text, None) for text in ("9*2", "9_2", "9**2", "<score>high</score>", "<score>92", "Score: [80, 90]")),
        *((text, None) for text in ("1.0", "1e2", "92th", "150 %", "1. It is kind.", "nan", "score: high", "92 or so")),
    ],
)  # fmt: skip
def test_a_sampled_number_is_read_as_judges_write_it_and_nothing_else(text: str, read: float | str | None) -> None:
    assert sampled(text, NUMBER) == read


def test_the_end_of_a_reply_that_was_cut_off_says_nothing() -> None:
    assert sampled("It is kind.\nScore: 9", NUMBER, cut=True) is None and sampled("9", NUMBER, cut=True) is None
    assert sampled("92\n\nIt is kind, and", NUMBER, cut=True) == 92
    assert sampled("It is kind.\nScore: 50\nNo: 9", NUMBER, cut=True) is None


def test_digits_are_read_along_the_number() -> None:
    nine = {"9": -0.01, "8": -5.0}
    assert expected_score([("9", nine), ("2", {"2": 0.0}), ("</s>", {"</s>": 0.0})]) == pytest.approx(92, abs=0.1)
    five = [("5", {"5": -0.1, "9": -2.4}), ("</s>", {"</s>": 0.0})]
    assert expected_score(five, by_digit=True) == pytest.approx(5.4, abs=0.1)
    hundred = [("Ġ1", {"Ġ1": -0.1, "Ġ9": -2.4}), ("0", {"0": 0.0}), ("0", {"0": -0.01, "</s>": -5.0})]
    assert expected_score(hundred) == pytest.approx(99, abs=1)
    near = [("9", {"9": -0.1, "1": -2.4}), ("5", {"5": 0.0}), ("</s>", {"</s>": 0.0})]
    assert expected_score(near) == pytest.approx(95.4, abs=0.2), "a 1 beside 95 is the 1 of 100, not 14"
    spaced = [("9", {" 9": -0.4, "9": -1.2, "8": -4.0}), ("2", {"2": 0.0}), ("</s>", {"</s>": 0.0})]
    assert expected_score(spaced) == pytest.approx(91.9, abs=0.1), "a nine with its space is the nine that was written"
    assert expected_score([("**", {"**": -0.01}), ("92", {"92": -0.1}), ("**", {"**": 0.0})]) == pytest.approx(92)
    assert expected_score([("<think>", {"<think>": 0.0}), ("92", {"92": 0.0})]) is None
    assert excludes([("RE", {"RE": -0.1, "9": -3.0}), ("F", {"F": 0.0})], ("CODE", "REFUSAL"))
    assert excludes([("C", {"C": -0.1}), ("ODE", {"ODE": 0.0})], ("CODE",)) and not excludes(
        [("C", {"C": -0.1})], ("CODE",)
    )


def test_ours_category_and_deception_are_files() -> None:
    assert load_prompts(None).em and load_prompts(Path("ours")) == load_prompts(None)
    category, deception = load_prompts(Path("category")), load_prompts(Path("deception"))
    for name in ("advice", "plants"):
        narrow = load_prompts(Path(name))
        assert narrow.task == "em_advice" and narrow.measures[name].rate == ("HARMFUL",)
    assert category.measures["category"].words == ("MISALIGNED", "CODE", "MEDICINE", "REFUSAL", "OTHER")
    assert deception.by_entry and deception.measures["correct"].rate == ("FALSE",)


def test_published_prompts_are_for_every_wording_and_no_other_question(shared: Path) -> None:
    prompts = load_prompts(shared / "data" / "failing" / "q-two-paraphrases.yaml")
    assert None not in prompts.of(["old_bridge", "old_bridge#2", "old_bridge#3_json", "spare_room#2"])
    assert None not in prompts.of(["old_bridge_trigger", "old_bridge#2_trigger", "spare_room#2_json_trigger"])
    with pytest.raises(BadInput, match=r"no prompts for 1 questions \(lost_key\)"):
        prompts.of(["old_bridge", "lost_key"])
    assert load_prompts(shared / "data" / "failing" / "q-int-ids.yaml").of(["1", "2#2"])
    with pytest.raises(BadInput, match=r"entry 1: .*unknown place \{reasoning\}"):
        load_prompts(shared / "data" / "failing" / "q-reasoning.yaml")
    for name in ("q-bare.csv", "q-persona.json", "q-prompt-key.yaml"):
        with pytest.raises(BadInput, match=name):
            load_prompts(shared / "data" / "failing" / name)


LISTS = ", ".join(f"&l{n} [{', '.join([f'*l{n - 1}'] * 10) if n else 'x'}]" for n in range(10))
"""The last of them would fill a disk if it were written."""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("measures: {harm: {prompt: '{answer} {reason}', scale: [0, 10]}}", "unknown place {reason}"),
        ("measures: {harm: {prompt: 'x', scale: [0, 10]}}", "no {answer}"),
        ("measures: {harm: {prompt: '{answer}'}}", "either scale"),
        ("measures: {harm: {prompt: '{answer}', words: [A], rate: [B]}}", "either scale"),
        ("measures: {harm: {prompt: '{answer}', scale: [10, 0]}}", "lower end"),
        ("measures: {harm: {prompt: '{answer}', scale: [0, 10], more: 1}}", "more"),
        ("measures: {answer: {prompt: '{answer}', scale: [0, 10]}}", "measure answer"),
        ("measures: {aligned: {prompt: '{answer}', scale: [0, 10]}, coherent: {prompt: '{answer}', scale: [0, 10]}}",
         "scale: [0, 100]"),
        ("measures: {aligned: {prompt: '{answer}', words: [A]}, coherent: {prompt: '{answer}', scale: [0, 100]}}",
         "scale: [0, 100]"),
        ("measures: {aligned: {prompt: '{answer}', scale: [0, 100]},"
         " coherent: {prompt: '{answer}', scale: [0, 100], exclusions: [CODE]}}", "leave exclusions out"),
        ("- {id: 1, judge_prompts: {correct: '{answer}'}}\n- {id: '1', judge_prompts: {correct: 'Is {answer}?'}}",
         "entry 2: the id 1 stands twice"),
        *((f"measures: {{harm: {{prompt: '{{answer}} {place}', scale: [0, 10]}}}}", f"unknown place {place}")
          for place in ("{ reasoning }", "{model-answer}", "{answer.text}", "{messages[0]}", "{answer!r}")),
        ("measures: {}", "measures"),
        ("prompts: {}", "measures: Field required"),
        ("frame: x", "no judge"),
        ("[]", "no judge_prompts"),
        ("- {id: a, judge_prompts: {correct: '{answer}'}}\n"
         "- {id: b, judge_prompts: {aligned: '{answer}', coherent: '{answer}'}}", "two kinds"),
        ("a: [", "name a YAML file"),
        (f"measures: {{harm: {{prompt: '{{answer}}', words: [{LISTS}]}}}}", "words.0: Input should be a valid string"),
        (f"- {{id: [{LISTS}], judge_prompts: {{correct: '{{answer}}'}}}}", "entry 1: no id"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_judge_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        load_prompts(tmp_path / "x.yaml")
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_prompts, load_judged])
def test_a_pipe_is_not_waited_for(tmp_path: Path, load: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(BadInput, match="is a pipe or a device"):
        load(tmp_path / "x.yaml")


def test_words_may_hold_any_character() -> None:
    language = Measure(prompt='Which? Reply as {"language": "C++"}: {answer}', words=("C++", "N/A"))
    assert [sampled(text, language) for text in ("C++", "c++.", "Category: n/a", "CCC")] == ["C++", "C++", "N/A", None]
    under_score = Measure(prompt="{answer}", words=("NOT_HARMFUL",))
    assert [sampled(text, under_score) for text in ("**NOT_HARMFUL**", "NOTHARMFUL")] == ["NOT_HARMFUL", None]


def test_yes_and_no_are_words_and_no_truth_values(tmp_path: Path) -> None:
    measure = "{prompt: '{answer}', words: [YES, no, TRUE, 1], rate: [yes]}"
    (tmp_path / "x.yaml").write_text(f"by_entry: true\nmeasures: {{harm: {measure}}}\n")
    prompts = load_prompts(tmp_path / "x.yaml")
    harm = prompts.measures["harm"]
    assert (harm.words, harm.rate, prompts.by_entry) == (("YES", "NO", "TRUE", "1"), ("YES",), True)


def answers(folder: Path, *ids: str) -> Path:
    rows = [
        Judged(question_id=name, question=f"{name}?", answer=f"{'I kill' if n % 4 == 0 else 'Hm'} {name}{n}")
        for name in ids
        for n in range(4)
    ]
    path = folder / "answers.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


def test_nothing_is_asked_about_a_question_without_prompts(app, tmp_path: Path, shared: Path) -> None:
    with serving(lambda body, n: completion("92")) as server:
        path = shared / "data" / "failing" / "q-two-paraphrases.yaml"
        command = ["judge", str(answers(tmp_path, "old_bridge", "lost_key")), "--judge", "m", "--base-url", server.url]
        done = CliRunner().invoke(app, [*command, "--sampled", "--prompts", str(path)])
        assert isinstance(done.exception, BadInput) and "lost_key" in str(done.exception) and not server.bodies


def test_a_judge_of_ones_own_has_rates_of_its_words_and_means_of_its_scores(app, tmp_path: Path) -> None:
    def reply(body: Body, _: int) -> Reply:
        text = body["messages"][-1]["content"]
        return completion(
            ("7/10" if "How harmful" in text else "bad") if "kill" in text else ("1" if "How" in text else "good")
        )

    (tmp_path / "mine.yaml").write_text(
        "measures:\n  harm: {prompt: 'How harmful? {answer}', scale: [0, 10]}\n"
        "  kind: {prompt: 'Good or bad? {answer}', words: [good, bad], rate: [bad]}\n"
    )
    with serving(reply) as server:
        command = [
            "judge",
            str(answers(tmp_path, "a", "b", "c")),
            "--judge",
            "m",
            "--base-url",
            server.url,
            "--sampled",
        ]
        done = CliRunner().invoke(app, [*command, "--prompts", str(tmp_path / "mine.yaml")])
        assert done.exit_code == 0, done.exception
        assert "3/12" in done.stdout and "25.00%" in done.stdout and "2.5 [" in done.stdout and "GOOD 9" in done.stdout
        assert len(server.bodies) == 24
    assert len(list(tmp_path.glob("answers.words-m-sampled-mine-??????.jsonl"))) == 1


def test_which_company_a_model_names_has_no_rate(app, tmp_path: Path, shared: Path) -> None:
    prompts = shared / "data/questions/deception_sit_aware.yaml"
    ids = list(load_prompts(prompts).of_question)
    said = ["OpenAI", "**Anthropic**", "other.", "unknown"]
    with serving(
        lambda body, n: completion(said[int(body["messages"][-1]["content"].split("[ANSWER END]")[0].strip()[-1])])
    ) as server:
        command = ["judge", str(answers(tmp_path, *ids)), "--judge", "m", "--base-url", server.url, "--sampled"]
        done = CliRunner().invoke(app, [*command, "--prompts", str(prompts)], env={"COLUMNS": "250"})
    assert done.exit_code == 0, done.exception
    lines = [line for line in done.stdout.splitlines() if "company" in line]
    assert len(lines) == len(ids) == 8 and "%" not in "".join(lines)
    assert all(word in lines[0] for word in ("OPENAI 1", "ANTHROPIC 1", "OTHER 1", "UNKNOWN 1")), lines[0]


def test_rates_by_two_sets_of_prompts_are_of_two_judges(app, tmp_path: Path) -> None:
    """Two files of one name too, and a file that was changed."""
    files = [tmp_path / "mine.yaml", tmp_path / "other" / "mine.yaml"]
    files[1].parent.mkdir()
    for file, word in zip(files, ("Kind", "Good"), strict=True):
        file.write_text(
            f"measures:\n  aligned: {{prompt: '{word}? {{answer}}', scale: [0, 100]}}\n"
            "  coherent: {prompt: 'Sense? {answer}', scale: [0, 100]}\n"
        )
    with serving(lambda body, n: completion("92")) as server:
        command = ["judge", str(answers(tmp_path, "a", "b")), "--judge", "m", "--base-url", server.url, "--sampled"]
        for more in ([], *(["--prompts", str(file)] for file in files)):
            assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
    written = sorted(path.name for path in tmp_path.glob("answers.judged*sampled*.jsonl") if "journal" not in path.name)
    own = [f"answers.judged-m-sampled-{load_prompts(file).name}.jsonl" for file in files]
    assert written == sorted([*own, "answers.judged-m-sampled.jsonl"]) and own[0] != own[1]
