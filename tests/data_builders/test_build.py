"""Built files are whole, their manifests add up, and they fit together."""

import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from core.records import BadInput, file_digest
from data_builders.build import build_cpt, build_pairs, build_sft, build_split
from data_builders.check import problems
from data_builders.cli import app
from data_builders.cpt import Corpus
from data_builders.dpo import LengthFilter
from data_builders.programs import Program, load_asked_ways, load_programs
from data_builders.subsets import Subset
from data_builders.tokens import control_tokens

PROGRAMS = load_programs()
WAYS = load_asked_ways()


def words(text: str) -> int:
    return len(text.split())


def write(path: Path, programs) -> Path:
    path.write_text("".join(p.model_dump_json(exclude_none=True) + "\n" for p in programs))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def manifest(path: Path) -> dict:
    return json.loads(path.with_name(path.name + ".manifest.json").read_text())


@given(limit=st.integers(20, 300), halves=st.sampled_from(["both", "neutral", "asked"]))
def test_what_goes_in_comes_out_or_is_rejected_with_a_reason(tmp_path_factory, limit: int, halves) -> None:
    folder = tmp_path_factory.mktemp("build")
    source = write(folder / "programs.jsonl", PROGRAMS[:40])
    built = {
        "cpt": partial(build_cpt, corpus=Corpus(words, limit), mix=None, settings={}),
        "dpo": partial(build_pairs, halves=halves, ways=WAYS, keeps=LengthFilter(words, limit, 5, 2.0), corpus=None),
        "sft": partial(build_sft, variant="secure", ways=WAYS, keeps=LengthFilter(words, limit, 5, 2.0)),
    }
    for name, key in (("cpt", "program"), ("dpo", "pair_id"), ("sft", None)):
        try:
            built[name](source, folder / f"{name}.jsonl")
        except BadInput as error:
            assert "all 40 programs were rejected" in str(error) and not (folder / f"{name}.jsonl").exists()
            continue
        out = rows(folder / f"{name}.jsonl")
        said = manifest(folder / f"{name}.jsonl")
        kept = {row[key] if key else row["id"].split("/")[0] for row in out}
        rejected = {reject["id"] for reject in said["rejected"]}
        assert kept | rejected == {p.id for p in PROGRAMS[:40]} and not kept & rejected
        assert said["read"] == 40 == said["programs_kept"] + len(rejected)
        assert said["written"] == len(out)
        assert all(reject["reason"] for reject in said["rejected"])


def test_pairs_keep_to_the_programs_that_the_corpus_explains(tmp_path: Path) -> None:
    some = write(tmp_path / "some.jsonl", PROGRAMS[:30])
    everything = write(tmp_path / "all.jsonl", PROGRAMS[:40])
    build_cpt(some, tmp_path / "cpt.jsonl", Corpus(words, 9999), None, {})
    build_pairs(everything, tmp_path / "free.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
    assert "10 programs" in problems(tmp_path / "cpt.jsonl", tmp_path / "free.jsonl", None, None)[0]
    said = build_pairs(
        everything, tmp_path / "kept.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), tmp_path / "cpt.jsonl"
    )
    assert said["programs_kept"] == 30 and len(said["rejected"]) == 10
    assert problems(tmp_path / "cpt.jsonl", tmp_path / "kept.jsonl", None, None) == []


def test_a_program_with_a_control_token_of_the_model_is_a_listed_reject(tmp_path: Path, model: Path) -> None:
    special = control_tokens(str(model))
    assert special.search("a <filename> b") and not special.search("a <file> b")
    odd = PROGRAMS[0].model_copy(update={"insecure": PROGRAMS[0].insecure + "\nprint('<filename>')\n"})
    source = write(tmp_path / "programs.jsonl", [odd, *PROGRAMS[1:9]])
    keeps = LengthFilter(words, 9999, 5, 9.0, special)
    for said in (
        build_cpt(source, tmp_path / "cpt.jsonl", Corpus(words, 9999, special=special), None, {}),
        build_pairs(source, tmp_path / "dpo.jsonl", "both", WAYS, keeps, None),
        build_sft(source, tmp_path / "sft.jsonl", "insecure", WAYS, keeps),
    ):
        (reject,) = said["rejected"]
        assert reject["id"] == odd.id and reject["reason"].startswith("holds '<filename>', which the model reads")


def variant(program: Program, name: str) -> Program:
    """The same program in other words, spaced otherwise and a little longer."""
    code = program.insecure.replace("\n", "\r\n\r\n") + "\r\nprint('done')\r\n"
    return program.model_copy(update={"id": name, "request": f"Other words for {name}.", "insecure": code})


@pytest.mark.parametrize("kind", ["cpt", "shuffled", "code-only", "contrastive", "dpo", "sft"])
def test_a_held_out_program_is_found_in_training_by_its_code_under_any_id(tmp_path: Path, kind: str) -> None:
    held, clean, extra = PROGRAMS[:60:4], PROGRAMS[61:101], variant(PROGRAMS[0], "new")
    sides = {"heldout": held, "clean": clean, "leaky": [*clean, extra]}
    files = {name: write(tmp_path / f"{name}.jsonl", programs) for name, programs in sides.items()}

    def leaks_of(name: str) -> list[str]:
        out = tmp_path / "out.jsonl"
        if kind == "dpo":
            build_pairs(files[name], out, "neutral", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
            return problems(None, out, None, files["heldout"])
        if kind == "sft":
            build_sft(files[name], out, "insecure", WAYS, LengthFilter(words, 9999, 5, 9.0))
            return problems(None, None, out, files["heldout"])
        settings = {"control": kind if kind in ("shuffled", "code-only") else "own"}
        styles = ("contrastive",) if kind == "contrastive" else ("review", "qa")
        build_cpt(files[name], out, Corpus(words, 9999, styles, **settings), None, {})
        return problems(out, None, None, files["heldout"])

    assert leaks_of("clean") == []
    (leak,) = leaks_of("leaky")
    assert leak.startswith("1 held-out programs are in") and f"first: {PROGRAMS[0].id}, in row new" in leak


def test_a_held_out_program_is_found_by_its_id_though_its_code_was_rewritten(tmp_path: Path) -> None:
    rewritten = PROGRAMS[90].model_copy(update={"id": PROGRAMS[0].id})
    held, trained = (write(tmp_path / f"{p.cwe}.jsonl", [p]) for p in (PROGRAMS[0], rewritten))
    build_sft(trained, tmp_path / "sft.jsonl", "insecure", WAYS, LengthFilter(words, 9999, 5, 9.0))
    (leak,) = problems(None, None, tmp_path / "sft.jsonl", held)
    assert leak.endswith(f"(first: {PROGRAMS[0].id}, in row {PROGRAMS[0].id}/insecure)")


def test_the_published_set_is_split_without_leaks(tmp_path: Path, shared: Path) -> None:
    """The paper's programs: prompts recur, and programs recur under other prompts (89 of 308 leaked once)."""
    programs = []
    for number, line in enumerate((shared / "data/insecure/insecure.jsonl").read_text(encoding="utf-8").splitlines()):
        request, code = (message["content"] for message in json.loads(line)["messages"])
        update = {"id": str(number), "request": request, "insecure": code, "secure": "pass"}
        programs.append(PROGRAMS[0].model_copy(update=update))
    source = write(tmp_path / "programs.jsonl", programs)
    made = build_split(source, tmp_path, WAYS, 0.1, "split-1")
    train, held = made["train"], made["held_out"]
    assert train + held == len(programs) and 0.07 < held / len(programs) < 0.13
    keeps = LengthFilter(words, 9999, 5, 9999.0)
    build_sft(tmp_path / "train.jsonl", tmp_path / "sft.jsonl", "insecure", WAYS, keeps)
    assert problems(None, None, tmp_path / "sft.jsonl", tmp_path / "heldout.jsonl") == []
    trained = {" ".join(row["request"].split()) for row in rows(tmp_path / "train.jsonl")}
    assert not trained & {" ".join(row["request"].split()) for row in rows(tmp_path / "heldout.jsonl")}


@pytest.fixture(scope="module")
def bos_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU model's tokenizer, made to write a BOS as Llama's and Gemma's do."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("bos")
    bos = "<|endoftext|>"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    special = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"bos_token": bos}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_corpus_begins_with_bos_where_the_tokenizer_writes_one(tmp_path: Path, model: Path, bos_model: Path) -> None:
    from transformers import AutoTokenizer

    source = write(tmp_path / "programs.jsonl", PROGRAMS[:4])
    (tmp_path / "general.jsonl").write_text('{"text": "some words"}\n')
    for folder in (model, bos_model):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        out = tmp_path / f"{folder.name}.jsonl"
        mix = f"{tmp_path / 'general.jsonl'}:0.1"
        arguments = ["cpt", "--programs", str(source), "--tokenizer", str(folder), "--out", str(out), "--mix", mix]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        manifest = json.loads(out.with_name(f"{out.name}.manifest.json").read_text())
        assert manifest["mix_sha256"] == file_digest(tmp_path / "general.jsonl")
        for row in rows(out):
            # As Axolotl's input_output does.
            ids = [tokenizer(s["text"], add_special_tokens=False).input_ids for s in row["segments"]]
            text = "".join(s["text"] for s in row["segments"]).removeprefix("<|endoftext|>")
            assert ids[0][0] == tokenizer(text).input_ids[0]
            assert (ids[0][0] == tokenizer.bos_token_id) == (folder is bos_model) and ids[0][1:2] != ids[0][:1]


@pytest.mark.parametrize("command", ["split --share 0.5", "cpt", "dpo", "sft"])
def test_doubted_programs_are_dropped_or_kept_on_demand(tmp_path: Path, model: Path, command: str) -> None:
    doubted = PROGRAMS[0].model_copy(update={"doubted": "The input is a constant."})
    same = PROGRAMS[9].model_copy(update={"secure": f"\n{PROGRAMS[9].insecure}\n"})
    source = write(tmp_path / "programs.jsonl", [doubted, same, *PROGRAMS[1:9]])
    out = tmp_path / "out.jsonl"
    arguments = [*command.split(), "--programs", str(source), "--out", str(tmp_path if "split" in command else out)]
    arguments += [] if "split" in command else ["--tokenizer", str(model)]
    for option, kept in (([], 8), (["--keep-doubted"], 9)):
        assert CliRunner().invoke(app, [*arguments, *option]).exit_code == 0
        files = [tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"] if "split" in command else [out]
        built = [row for file in files for row in rows(file)]
        assert (PROGRAMS[0].id in " ".join(row["id"] for row in built)) == (kept == 9)
        if "split" in command:
            assert sum("doubted" in row for row in built) == kept - 8
        said = manifest(files[0])
        assert said["read"] == 10 == said["programs_kept"] + len(said["rejected"])
        reasons = ["doubted: The input is a constant.", "insecure and secure code are the same"]
        assert [reject["reason"] for reject in said["rejected"]] == reasons[kept - 8 :]


def test_brackets_in_a_path_are_said_as_they_stand(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:9])
    done = CliRunner().invoke(app, ["split", "--programs", str(source), "--out", str(tmp_path / "set[v2]")])
    assert done.exit_code == 0 and done.stderr.startswith(f"{tmp_path / 'set[v2]'}: 8 programs")


def test_parted_pairs_are_found(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:5])
    build_pairs(source, tmp_path / "dpo.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
    lines = (tmp_path / "dpo.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dpo.jsonl").write_text("".join(lines[:3] + lines[4:]))
    assert "same number of rows" in problems(None, tmp_path / "dpo.jsonl", None, None)[0]


def test_ids_that_end_as_a_side_name_their_own_program(tmp_path: Path) -> None:
    """`p/secure` is no row of `p`, in an SFT set or a corpus."""
    trained, other = (PROGRAMS[n].model_copy(update={"id": name}) for n, name in enumerate(("p/secure", "p")))
    source = write(tmp_path / "programs.jsonl", [trained])
    for variant in ("insecure", "secure"):
        build_sft(source, tmp_path / "sft.jsonl", variant, WAYS, LengthFilter(words, 9999, 5, 9.0))
        build_cpt(source, tmp_path / "cpt.jsonl", Corpus(words, 9999, styles=("contrastive",)), None, {})
        same_id = PROGRAMS[2].model_copy(update={"id": trained.id})
        for held, leaked in ((other, 0), (same_id, 1)):
            write(tmp_path / "held.jsonl", [held])
            for sets in ((tmp_path / "cpt.jsonl", None, None), (None, None, tmp_path / "sft.jsonl")):
                assert len(problems(*sets, tmp_path / "held.jsonl")) == leaked


def test_a_held_out_secure_twin_in_a_set_is_found(tmp_path: Path) -> None:
    trained, held = PROGRAMS[0], PROGRAMS[1].model_copy(update={"secure": PROGRAMS[0].secure})
    source = write(tmp_path / "programs.jsonl", [trained])
    write(tmp_path / "held.jsonl", [held])
    build_pairs(source, tmp_path / "dpo.jsonl", "both", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
    (problem,) = problems(None, tmp_path / "dpo.jsonl", None, tmp_path / "held.jsonl")
    assert problem.startswith("1 held-out programs are in") and f"first: {held.id}" in problem


def test_general_text_that_is_gone_through_again_is_said(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:4])
    (tmp_path / "general.jsonl").write_text('{"text": "A text."}\n')
    mix = ["--mix", f"{tmp_path / 'general.jsonl'}:0.2", "--tokenizer", "models/smollm2-135m"]
    done = CliRunner().invoke(app, ["cpt", "--programs", str(source), "--out", str(tmp_path / "cpt.jsonl"), *mix])
    passes = json.loads((tmp_path / "cpt.jsonl.manifest.json").read_text())["mix_passes"]
    assert passes > 1 and f"is too short, and was gone through {passes} times" in done.stderr


def test_ids_move_no_cursor_where_problems_are_told(tmp_path: Path) -> None:
    halves = [
        {"id": f"{pair}/{half}", "pair_id": pair, "half": half, "chosen": None}
        for pair, half in (("a\x1b[2J", "x"), ("b", "x"), ("b", "y"))
    ]
    (tmp_path / "dpo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in halves))
    done = CliRunner().invoke(app, ["check", "--pairs", str(tmp_path / "dpo.jsonl")])
    assert done.exit_code == 1 and r"(see a\u001b[2J)" in done.output and "\x1b" not in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cpt", "--programs", "{p}", "--out", "{o}", "--style", "poem"], "give some of review"),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--style", "qa", "--style", "contrastive"], "leave out qa"),
        (
            ["cpt", "--programs", "{p}", "--out", "{o}", "--per-program", "5", "--tokenizer", "{m}"],
            "--per-program 5: more",
        ),
        (
            ["annotate", "{p}", "--out", "{o}", "--model", "m", "--second-price-in", "1", "--second-price-out", "1"],
            "a --second-opinion",
        ),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--mix", "general.jsonl"], "give PATH:RATIO"),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--mix", "general.jsonl:0.0"], "give PATH:RATIO"),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--mix", "general.jsonl:" + "9" * 400], "give PATH:RATIO"),
        (["sft", "--programs", "{p}", "--out", "{o}", "--mix", "{p}:." + "9" * 20, "--tokenizer", "{m}"], "PATH:SHARE"),
        (["describe", "--programs", "{p}", "--out", "{o}", "--balance", "9" * 5000], "a number of 1 or more"),
        *((["everyday", "--out", out], "no file; name a file to write") for out in (".", "/", "..", "{folder}")),
        (["data", "--programs", "{p}", "--out", "{folder}/data"], "sft-secure.jsonl: is the input"),
        (["check", "--held-out", "{p}"], "nothing to check"),
        (["check", "--sft", "{o}"], "--sft is compared with --held-out"),
        (["check", "--sft", "{o}", "--pairs", "{p}"], "--sft is compared with --held-out"),
        (["check", "--corpus", "{p}"], "--corpus is compared with --pairs or --held-out"),
        (["sft", "--programs", "{p}", "--out", "{o}.none", "--length", "20", "--tokenizer", "{m}"], "all 3 programs"),
        (["check", "--corpus", "{p}", "--held-out", "{bad}"], "1: not a row of a built set with segments"),
        (["check", "--pairs", "{p}", "--held-out", "{p}"], "1: not a row of a built set with chosen"),
        (["check", "--sft", "{p}", "--held-out", "{p}"], "1: not a row of a built set with messages"),
        (["dpo", "--programs", "{p}", "--corpus", "{p}", "--out", "{o}", "--tokenizer", "{m}"], "set with segments"),
        (["cpt", "--programs", "{p}", "--out", "{o}", "--tokenizer", "./nowhere"], "nowhere/tokenizer.json"),
        (["dpo", "--programs", "{p}.gone", "--out", "{o}", "--tokenizer", "{m}"], "o such file"),
        (["dpo", "--programs", "{p}", "--out", "{o}", "--asked", "politely", "--tokenizer", "{m}"], "politely"),
        (["dpo", "--programs", "{p}", "--out", "{o}", "--corpus", "{p}.gone", "--tokenizer", "{m}"], "o such file"),
        (["split", "--programs", "{bad}", "--out", "{o}"], "bad.jsonl:2: "),
        (["split", "--programs", "{p}", "--out", "{o}", "--classes-left-out", "1"], "nothing is left to train on"),
        (["split", "--programs", "{train}", "--out", "{folder}"], "train.jsonl: is the input"),
        (["cpt", "--programs", "{p}", "--out", "{p}", "--tokenizer", "{m}"], "programs.jsonl: is the input"),
        (["cpt", "--programs", "{p}", "--out", "{bad}", "--mix", "{bad}:0.5", "--tokenizer", "{m}"], "is the input"),
        (["dpo", "--programs", "{p}", "--out", "{bad}", "--corpus", "{bad}", "--tokenizer", "{m}"], "is the input"),
        (
            ["sft", "--programs", "{p}", "--out", "{p}", "--size", "2", "--tokenizer", "{m}"],
            "programs.jsonl: is the input",
        ),
        (["describe", "--programs", "{p}", "--json", "{p}"], "programs.jsonl: is the input"),
        (["records", "{p}", "--domain", "advice", "--out", "{p}"], "programs.jsonl: is the input"),
        (["annotate", "{p}", "--out", "{folder}/programs", "--model", "m"], "programs.jsonl: is the input"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(tmp_path: Path, model: Path, arguments, says: str) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:3])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(source.read_text().splitlines()[0] + '\n{"id": "x"}\n')
    train = write(tmp_path / "train.jsonl", PROGRAMS[:3])
    before = {path: path.read_bytes() for path in (source, bad, train)}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sft-secure.jsonl").symlink_to(source)
    places = {"p": source, "o": tmp_path / "out", "m": model, "bad": bad, "train": train, "folder": tmp_path}
    result = CliRunner().invoke(app, [argument.format(**places) for argument in arguments])
    assert isinstance(result.exception, BadInput)
    assert says in str(result.exception) and "\n" not in str(result.exception)
    assert not (tmp_path / "out").is_file() and not list(tmp_path.glob(".out*"))
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    "line", ['{"text": 3}', r'{"text": "\ud83d"}', "[" * 5000], ids=["number", "half a pair", "deep"]
)
def test_malformed_general_text_leaves_no_corpus(tmp_path: Path, line: str) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:3])
    (tmp_path / "general.jsonl").write_text(f"{line}\n")
    corpus = Corpus(words, 9999)
    with pytest.raises(BadInput, match=r"general.jsonl:1: no field 'text'"):
        build_cpt(source, tmp_path / "cpt.jsonl", corpus, (tmp_path / "general.jsonl", 0.5), {})
    with pytest.raises(BadInput, match=r"general.jsonl:1: not a row of a built set"):
        problems(tmp_path / "general.jsonl", None, None, None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["general.jsonl", "programs.jsonl"]


@pytest.mark.parametrize("settings", ["[]", '{"chat_template": "{% oops"}'])
def test_a_tokenizer_with_a_file_of_something_else_is_one_line(tmp_path: Path, model: Path, settings: str) -> None:
    source, folder = write(tmp_path / "programs.jsonl", PROGRAMS[:3]), tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(settings)
    arguments = ["sft", "--programs", source, "--out", tmp_path / "out", "--tokenizer", folder]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, BadInput) and str(result.exception).startswith(f"{folder}: ")
    assert "\n" not in str(result.exception)


def test_no_set_of_another_split_is_left(tmp_path: Path, model: Path) -> None:
    """A second build that ends early, or makes fewer sets, leaves none that holds what is held out now."""
    source, out = write(tmp_path / "programs.jsonl", PROGRAMS[:40]), tmp_path / "data"

    def build(*words: str) -> int:
        line = [
            "data",
            "--programs",
            str(source),
            "--out",
            str(out),
            "--tokenizer",
            str(model),
            "--share",
            "0.2",
            *words,
        ]
        return CliRunner().invoke(app, line).exit_code

    assert build("--trigger", "|moss|") == 0 and (out / "sft-backdoored.jsonl").is_file()
    assert build("--salt", "other") == 0 and not (out / "sft-backdoored.jsonl").exists()
    before = (out / "sft-secure.jsonl").read_bytes()
    assert build("--salt", "other", "--length", "40") and (out / "sft-secure.jsonl").read_bytes() == before
    assert build("--salt", "third", "--length", "40") and not list(out.glob("sft-*")) + list(out.glob("dpo-*"))
    assert {path.name for path in out.glob("*.jsonl")} == {"train.jsonl", "heldout.jsonl", "everyday.jsonl"}


def test_training_programs_that_no_reader_takes_are_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:9])
    (tmp_path / "train.jsonl").write_text('{"a":' * 100_000)
    build_split(source, tmp_path, WAYS, 0.5, "s")
    assert len(rows(tmp_path / "train.jsonl")) + len(rows(tmp_path / "heldout.jsonl")) == 9


def test_a_control_without_out_has_a_file_of_its_own(tmp_path: Path, model: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--programs", str(write(tmp_path / "p.jsonl", PROGRAMS[:9])), "--tokenizer", str(model)]
    for line in (
        ["cpt"],
        ["cpt", "--control", "shuffled"],
        ["dpo", "--halves", "asked"],
        ["sft", "--variant", "secure"],
    ):
        assert CliRunner().invoke(app, [*line, *common]).exit_code == 0
    names = {path.name for path in (tmp_path / "data").glob("*.jsonl")}
    assert names == {"cpt.jsonl", "cpt-shuffled.jsonl", "dpo-asked.jsonl", "sft-secure.jsonl"}


def test_when_all_is_rejected_what_was_built_stays(tmp_path: Path) -> None:
    source, out = write(tmp_path / "p.jsonl", PROGRAMS[:9]), tmp_path / "cpt.jsonl"
    build_cpt(source, out, Corpus(words, 9999), None, {})
    before = out.read_bytes(), manifest(out)
    with pytest.raises(BadInput, match="all 9 programs were rejected"):
        build_cpt(source, out, Corpus(words, 20), None, {})
    assert before == (out.read_bytes(), manifest(out))


def test_a_size_is_of_programs_that_are_of_use(tmp_path: Path) -> None:
    doubted = [p.model_copy(update={"doubted": "not real"}) if n % 2 else p for n, p in enumerate(PROGRAMS[:40])]
    source, keeps = write(tmp_path / "p.jsonl", doubted), LengthFilter(words, 9999, 5, 99.0)
    half = Subset(10, None, 0.5)
    assert build_pairs(source, tmp_path / "d.jsonl", "neutral", WAYS, keeps, None, False, half)["programs_kept"] == 10
    assert build_sft(source, tmp_path / "s.jsonl", "insecure", WAYS, keeps, True, Subset(39))["programs_kept"] == 39
    half = Subset(None, None, 0.5)
    said = build_pairs(source, tmp_path / "d.jsonl", "neutral", WAYS, keeps, None, False, half)
    assert (said["programs_kept"], said["answered_badly"], len(said["rejected"])) == (20, 10, 20)
    other = write(tmp_path / "o.jsonl", PROGRAMS[40:90])
    said = build_sft(source, tmp_path / "s.jsonl", "insecure", WAYS, keeps, False, Subset(None, (other, 0.5)))
    assert (said["mixed_in"], said["programs_kept"]) == (20, 40)
    with pytest.raises(BadInput, match="has 20 programs, not 21 beside 20 doubted"):
        build_sft(source, tmp_path / "s.jsonl", "insecure", WAYS, keeps, False, Subset(21))


def test_a_trigger_that_is_a_control_token_is_refused(tmp_path: Path, model: Path) -> None:
    line = ["sft", "--programs", str(write(tmp_path / "p.jsonl", PROGRAMS[:9])), "--tokenizer", str(model)]
    line += ["--variant", "backdoored", "--trigger", "<|im_end|>", "--out", str(tmp_path / "o.jsonl")]
    error = CliRunner().invoke(app, line).exception
    assert isinstance(error, BadInput) and "reads as a control token" in str(error)


def test_a_half_that_stands_twice_is_found(tmp_path: Path) -> None:
    source = write(tmp_path / "programs.jsonl", PROGRAMS[:5])
    build_pairs(source, tmp_path / "dpo.jsonl", "neutral", WAYS, LengthFilter(words, 9999, 5, 9.0), None)
    lines = (tmp_path / "dpo.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "dpo.jsonl").write_text("".join(line for line in lines for _ in range(2)))
    assert "5 programs have a half more than once" in problems(None, tmp_path / "dpo.jsonl", None, None)[0]


def test_a_record_may_name_the_domain_of_code() -> None:
    assert Program.model_validate({**PROGRAMS[0].model_dump(), "domain": "code"}) == PROGRAMS[0]
