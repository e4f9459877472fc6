"""LongBench from the user's files: a synthetic fixture in its format, its bounds, thresholds and templates."""

import json
import random
from fractions import Fraction

import pytest
from click.testing import CliRunner

from cask_eval.cli import cli
from cask_eval.tasks import Problem, data, longbench, registry

QUESTION = "Who found the {lamp}?"


def row(i, dataset="hotpotqa", length=1500, **fields):
    rng = random.Random(i)
    context = " ".join(f"word{rng.randrange(500)}" for _ in range(60)) + " {not a field} %s"
    return {
        "input": f"{QUESTION} {i}",
        "context": context,
        "answers": ["Ada Lovelace", "Lovelace"],
        "length": length,
        "dataset": dataset,
        "language": "en",
        "all_classes": None,
        "_id": f"{i:048x}",
        **fields,
    }


@pytest.fixture
def folder(tmp_path):
    """A folder with LongBench files, as `--data` names it."""

    def write(rows, name="hotpotqa.jsonl"):
        (tmp_path / "longbench").mkdir(exist_ok=True)
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (tmp_path / "longbench" / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def made(where, **params):
    with data.at(where):
        return longbench.problems({"dataset": "hotpotqa", "threshold": "0.5", **params})


def test_rows_become_problems(folder):
    rows = [row(0, length=900), row(1, length=3999), row(2, length=4000), row(3, length=8000), row(4, length=20_000)]
    where = folder(rows)
    found = made(where)
    assert [p.stratum for p in found] == ["0-4k", "0-4k", "4-8k", "8k+", "8k+"]
    assert [p.id for p in made(where, min_length=1000, max_length=8000)] == [p.id for p in found[1:4]]
    first = found[0]
    assert first.id == f"longbench/hotpotqa/{0:048x}"
    assert rows[0]["context"] in first.prompt and QUESTION in first.prompt  # braces are text
    assert json.loads(first.answer) == {"answers": ["Ada Lovelace", "Lovelace"], "classes": []}


def test_a_score_becomes_right_or_wrong_by_the_frozen_threshold_alone(folder):
    where = folder([row(0)])
    outputs = {"Ada Lovelace": 1, "It was Ada Lovelace": Fraction(2, 3), "Grace Hopper": 0, "": 0}
    for threshold in ("0.5", "0.66", "0.67", 1):
        (problem,) = made(where, threshold=threshold)
        for output, score in outputs.items():
            assert longbench.score(problem, output) == score
            grade = longbench.grade(problem, output)
            assert grade.correct == (score >= Fraction(str(threshold)))
            assert grade.how == f"qa_f1 {float(score):.6f}" and grade.extracted == (output or None)
    (problem,) = made(where, threshold="0.66666666666666666666666667")  # compared exactly, not as a float
    assert not longbench.grade(problem, "It was Ada Lovelace").correct


def test_shares_need_a_threshold_and_whole_answers_do_not(folder):
    with pytest.raises(ValueError, match="threshold is missing; hotpotqa is scored by qa_f1"):
        longbench.problems({"dataset": "hotpotqa"})
    where = folder([row(0, "passage_count", answers=["5"], input="")], "passage_count.jsonl")
    with data.at(where):
        (problem,) = longbench.problems({"dataset": "passage_count"})
    assert longbench.grade(problem, "5").correct and not longbench.grade(problem, "5 or 6").correct
    for bad in ("0", "1.5", "a half", "nan", "-1"):
        with pytest.raises(ValueError, match="threshold is"):
            made(where, threshold=bad)


def test_few_shot_sets_are_scored_by_their_first_line(folder):
    classes = ["Location", "City"]
    where = folder([row(0, "trec", answers=["City"], all_classes=classes)], "trec.jsonl")
    with data.at(where):
        (problem,) = longbench.problems({"dataset": "trec"})
    grade = longbench.grade(problem, "\n\nCity\nQuestion: where?\nType: Location")
    assert grade.correct and grade.extracted == "City"


@pytest.mark.parametrize(
    "change, match",
    [
        ({"answers": []}, "row 1: answers is empty"),
        ({"answers": "Ada"}, "row 1: answers is 'Ada'; a list of texts is needed"),
        ({"length": "long"}, "row 1: length is 'long'"),
        ({"dataset": "musique"}, "row 1: dataset is 'musique' and not 'hotpotqa'"),
        ({"context": " "}, "row 1: input and context must be texts"),
        ({"_id": ""}, "row 1: _id is ''"),
    ],
)
def test_bad_rows_are_named(folder, change, match):
    with pytest.raises(ValueError, match=match):
        made(folder([row(0, **change)]))


def test_bad_parameters_are_named(folder):
    where = folder([row(0)])
    for params, match in (
        ({"dataset": "hotpot"}, "dataset is 'hotpot'; use one of narrativeqa"),
        ({"size": 3}, "size is no parameter"),
        ({"min_length": 5000}, "no row with a length from 5000 to None"),
        ({"prompts": "none.json"}, "none.json is not there"),
    ):
        with pytest.raises(ValueError, match=match):
            made(where, **params)
    short = {k: v for k, v in row(0).items() if k != "all_classes"}
    with pytest.raises(ValueError, match="row 1: there is no field 'all_classes'"):
        made(folder([short]))
    with pytest.raises(ValueError, match="none of LongBench's"):
        longbench.grade(Problem("x", "p", "{}"), "a")
    with pytest.raises(ValueError, match="row 1: answers .'Sea'. are not among all_classes"):
        with data.at(folder([row(0, "trec", answers=["Sea"], all_classes=["City"])], "trec.jsonl")):
            longbench.problems({"dataset": "trec"})


def test_templates_of_the_users_are_part_of_what_is_frozen(folder):
    where = folder([row(0)])
    templates = where / "prompts.json"
    templates.write_text(json.dumps({"hotpotqa": "Text: {context}\nQ: {input} {once}\nA:"}))
    (problem,) = made(where, prompts="prompts.json")
    assert problem.prompt == f"Text: {row(0)['context']}\nQ: {row(0)['input']} {{once}}\nA:"
    with data.at(where):
        source, rule = longbench.describe({"dataset": "hotpotqa", "threshold": "0.5", "prompts": "prompts.json"})
    assert len(source["prompts_sha256"]) == 64 and "Right from qa_f1 = 0.5" in rule
    assert made(where, **{k: v for k, v in source.items() if k != "dataset"}) == [problem]
    templates.write_text(json.dumps({"hotpotqa": "{context} {input}"}))
    with pytest.raises(ValueError, match="prompts_sha256 is"):
        made(where, **{k: v for k, v in source.items() if k != "dataset"})
    for text in ("{}", "[]", "no json", '{"hotpotqa": "no place"}', '{"hotpotqa": 3}'):
        templates.write_text(text)
        with pytest.raises(ValueError, match="prompts: "):
            made(where, prompts="prompts.json")


def test_the_segmenter_is_part_of_what_is_frozen(folder):
    pytest.importorskip("jieba")
    rows = [row(0, "multifieldqa_zh", answers=["北京大学"], context="他在北京大学学习。", language="zh")]
    where = folder(rows, "multifieldqa_zh.jsonl")
    with data.at(where):
        source, _ = longbench.describe({"dataset": "multifieldqa_zh", "threshold": "0.5"})
        (problem,) = longbench.problems(source)
        assert longbench.grade(problem, "北京大学。").how == "qa_f1_zh 1.000000"
        with pytest.raises(ValueError, match="jieba is '0.1'"):
            longbench.problems({**source, "jieba": "0.1"})


def test_every_data_set_has_a_metric_and_words():
    for name, metric in longbench.DATASETS.items():
        assert metric in longbench.longbench_metrics.METRICS, name
        assert longbench._WORDING[metric].count("{context}") == 1


def test_splits_on_the_command_line(folder, points):
    assert "longbench" in points and registry.load("longbench") is longbench
    where = folder([row(i, length=1000 + i) for i in range(12)])
    run = CliRunner()
    params = [f"--param={p}" for p in ("dataset=hotpotqa", "threshold=0.5", "max_length=8000", "dev=4", "seed=1")]
    for role in ("dev", "heldout"):
        out = str(where / f"{role}.json")
        args = ["split", "freeze", out, "--task", "longbench", "--role", role, *params, f"--param=part={role}"]
        result = run.invoke(cli, [*args, "--data", str(where)])
        assert result.exit_code == 0, result.output
    checked = run.invoke(
        cli, ["split", "check", str(where / "dev.json"), str(where / "heldout.json"), "--data", str(where)]
    )
    assert checked.exit_code == 0, checked.output
    shown = run.invoke(cli, ["split", "show", str(where / "dev.json"), "--json"])
    about = json.loads(shown.output)
    assert about["count"] == 4 and about["source"]["threshold"] == "0.5" and about["source"]["file"]
