"""T6: how each approach ended on each subject, with the reasons."""
from jaxfix.study.aggregate import Summary
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables.view import STAND_IN, Column, Line, View, rules


def applicability(v: View) -> list[Table]:
  """The matrix; below it one line for everything that did not end well."""
  rows = tuple((Cell(line.label), *(_cell(v, line, column) for column in v.columns)) for line in v.lines)
  notes = ['CORRUPTED: accuracy fell by more than 10 % of the original; FAILURE: an error or a limit during work; '
           'UNADAPTABLE: refused before work.']
  if any(c.dataset for c in v.columns):
    notes.append('Second words are published.')
  if v.published and any(not c.dataset for c in v.columns):
    notes.append(f'{STAND_IN}: stand-in; the study has no counterpart.')
  notes += [f'{line.label} on {column.title}: {_reasons(summary)}' for line in v.lines for column in v.columns
            if (summary := v.summary(line, column)) and set(summary.outcomes) != {'OK'}]
  return [Table('T6', 'Applicability: outcome of each approach on each subject',
                ('Approach', *(c.title for c in v.columns)), rows, rules(v.lines), tuple(notes))]


def _cell(v: View, line: Line, column: Column) -> Cell:
  word, why = v.word(line, column)
  summary = v.summary(line, column)
  text = word or 'OK'
  if summary and len(set(summary.outcomes)) > 1:
    text += f' ({summary.outcomes.count(summary.outcome)}/{len(summary.seeds)})'
  return Cell(text, v.published_outcome(line, column), title=why)


def _reasons(summary: Summary) -> str:
  by_reason = {}
  for seed, outcome, why in zip(summary.seeds, summary.outcomes, summary.reasons, strict=True):
    if outcome != 'OK':
      by_reason.setdefault(f'{outcome}, {why or "no reason was recorded"}', []).append(seed)
  return '; '.join(f'{text} (seed {", ".join(map(str, seeds))})' for text, seeds in by_reason.items())
