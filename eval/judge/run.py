"""What `emsweep judge` does with the paths that it is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from core.records import BadInput, printable
from eval.judge.answers import COLUMNS, Judged, sample_answers, stored_answers
from eval.judge.judge import Judge, Judgement, Unfinished, judge_rows, scored, unread
from eval.judge.rates import rates_table


def judge_paths(
    paths: Sequence[Path], judge: Judge, columns: Mapping[str, str], sample: float | None = None
) -> tuple[Table | None, str]:
    """Judges the answers of each path, an evaluation run's folder or a file, or a share of those to each question
    (`sample`); nothing is asked before all can be read. `columns` are the files' names of columns by ours.

    Returns:
        the table of what was judged, if anything was, and what is left, if anything is; BadInput if a path cannot be
        read, a question has no prompts, or the endpoint refuses all requests.
    """
    if columns.keys() & COLUMNS[3:] or (columns and all(path.is_dir() for path in paths)):
        raise BadInput(
            f"--columns {','.join(f'{own}={other}' for own, other in columns.items())}: nothing is read there; name the"
            f" columns {', '.join(COLUMNS[:3])} of files alone"
        )
    # A folder's name may hold a dot (qwen2.5): its stem would be cut there.
    models = {printable(path.resolve().name if path.is_dir() else path.stem): path for path in paths}
    if len(models) < len(paths):
        raise BadInput(f"two paths of the same name among {', '.join(models)}; judge them one after the other")
    answers = {model: stored_answers(path, judge.prompts.task, columns) for model, path in models.items()}
    for rows in answers.values():
        judge.prompts.of(row.question_id for row in rows)
    judge.count([judge.file(path) for path in models.values()])
    done: dict[str, tuple[list[Judged], Sequence[Judgement]]] = {}
    of: dict[str, int] = {}
    left = ""
    for model, rows in answers.items():
        if sample is not None:
            of[model], rows = len(rows), sample_answers(rows, sample)
        try:
            path = models[model]
            file = None if path.is_dir() else path.name
            done[model] = rows, judge_rows(rows, judge, judge.file(path), of.get(model), file)
        except Unfinished as unfinished:
            done[model], left = (rows, unfinished.judgements), f"{model}: {unfinished}"
            break
    left = left or unread({model: found for model, (_, found) in done.items()})
    if not judge.prompts.em:
        from eval.judge.words import words_table

        return words_table(done, judge), left
    judged = {model: scored(*each) for model, each in done.items()}
    if left:  # of too few answers there is no rate yet
        judged = {model: rows for model, rows in judged.items() if len({row.name for row in rows if row.judged}) > 1}
    return rates_table(judged, judge.label, of) if judged else None, left
