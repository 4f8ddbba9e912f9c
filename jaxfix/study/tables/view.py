"""What all tables of approaches and subjects share: which lines and columns there are, and how a figure is printed.

Decided here:
- A column is a published subject, or a stand-in under its own name with a double dagger. Once a published subject is
  measured, all five have a column and all sixteen approaches a line, so that what was not run is seen.
- Means are over the seeds that have the figure; a note names the cells where those are fewer than were run.
- A word (an outcome, 'not run') spans the columns of its subject; published figures then stand below it, joined by
  slashes.
"""
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from jaxfix.study.aggregate import MAX_ORIGINAL_DIFFERENCE, Summary, approach_rank, subject_rank, summarize
from jaxfix.study.published import REPEATS, Figure, Published
from jaxfix.study.store import Results
from jaxfix.study.table import Cell

DAGGER, STAND_IN = '†', '‡'
ABBREVIATED = {'CORRUPTED': 'CORR.', 'FAILURE': 'FAIL.', 'UNADAPTABLE': 'UNAD.', 'not run': 'not run'}


@dataclasses.dataclass(frozen=True)
class Column:
  """A subject of the tables. `subject` is '' for one that was not measured, `dataset` for a stand-in."""
  subject: str
  dataset: str
  title: str


@dataclasses.dataclass(frozen=True)
class Line:
  """An approach of the tables; `key` is `Summary.key`."""
  key: str
  code: str
  title: str
  category: str

  @property
  def label(self) -> str:
    """'AP Apricot'."""
    return self.title if self.code in ('', self.title) else f'{self.code} {self.title}'


@dataclasses.dataclass(frozen=True)
class View:
  """Measured summaries laid out beside the published tables."""
  results: Results
  published: Published | None
  summaries: tuple[Summary, ...]
  columns: tuple[Column, ...]
  lines: tuple[Line, ...]

  @functools.cached_property
  def _cells(self) -> dict[tuple[str, str], Summary]:
    return {(s.key, s.subject): s for s in self.summaries}

  @functools.cached_property
  def _measured(self) -> frozenset[str]:
    return frozenset(s.key for s in self.summaries)

  def summary(self, line: Line, column: Column) -> Summary | None:
    """The measured cell, or None."""
    return self._cells.get((line.key, column.subject))

  def figure(self, line: Line, column: Column, metric: str) -> Figure | None:
    """The published figure of a cell, or None; of 'net' what follows from the accuracy, with its std."""
    if self.published is None:
      return None
    if metric != 'net':
      return self.published.figure(line.code, column.dataset, metric)
    accuracy = self.published.figure(line.code, column.dataset, 'acc')
    change = accuracy.mean - self.originals(column)[1] if accuracy else math.nan
    return Figure(change, accuracy.std, percent(change, sign=True)) if accuracy else None

  def printed(self, line: Line, column: Column, metric: str) -> str:
    """Text of the published figure, with a dagger if it contradicts others of the paper; '' without one."""
    figure = self.figure(line, column, metric)
    if figure is None:
      return ''
    doubtful = self.published.doubtful(line.code, column.dataset, 'acc' if metric == 'net' else metric)
    return figure.text + DAGGER * doubtful

  def published_outcome(self, line: Line, column: Column) -> str:
    """'OK', ..., or '' where the study has no such cell."""
    return self.published.outcome(line.code, column.dataset) if self.published else ''

  def word(self, line: Line, column: Column) -> tuple[str, str]:
    """('', '') for a cell with figures; else its word and the reason for it."""
    summary = self.summary(line, column)
    if summary is not None:
      return ('', '') if summary.outcome == 'OK' else (summary.outcome, reason(summary))
    if not column.subject:
      return 'not run', 'the subject has no row in these results'
    if line.key not in self._measured:
      return 'not run', 'the approach has no row in these results'
    return 'not run', 'no row for this approach on this subject'

  def originals(self, column: Column) -> tuple[float, float]:
    """Accuracy of the original model, ours and published, as fractions; NaN where there is none."""
    measured = [v for s in self.summaries if s.subject == column.subject for v in s.values.get('acc_original', ())]
    known = self.published.subjects.get(column.dataset) if self.published else None
    return (sum(measured) / len(measured) if measured else math.nan), (known.orig_accuracy if known else math.nan)

  def originals_differ(self, column: Column) -> bool:
    """Whether RR and NFR have denominators too different to compare."""
    ours, theirs = self.originals(column)
    return abs(ours - theirs) > MAX_ORIGINAL_DIFFERENCE

  def lines_of(self, column: Column) -> tuple[Line, ...]:
    """Lines of a table of one subject: all, or for a stand-in those that were measured somewhere."""
    return self.lines if column.dataset else tuple(line for line in self.lines if line.key in self._measured)


def lay_out(results: Results, published: Published | None) -> View:
  """Lines and columns of the tables."""
  summaries = summarize(results.rows)
  measured = sorted({(s.published_subject if published else '', s.subject) for s in summaries},
                    key=lambda names: subject_rank(*names))
  shared = [d for d, _ in measured if d]
  columns = [Column(subject, dataset, _column_title(subject, dataset, shared) if published else subject)
             for dataset, subject in measured]
  lines = {s.key: Line(s.key, s.code, s.title, s.category) for s in summaries}
  if shared:
    columns += [Column('', d, d) for d in published.subjects if d not in shared]
    lines |= {a.code: Line(a.code, a.code, a.title, a.category) for a in published.approaches.values()
              if a.code not in lines}
  return View(
    results, published, summaries,
    tuple(sorted(columns, key=lambda c: subject_rank(c.dataset, c.subject))),
    tuple(sorted(lines.values(), key=lambda line: approach_rank(line.code, line.category, line.key))))


def _column_title(subject: str, dataset: str, shared: Sequence[str]) -> str:
  if not dataset:
    return subject + STAND_IN
  return dataset if shared.count(dataset) == 1 else f'{dataset} ({subject})'


def reason(summary: Summary) -> str:
  """Why a cell is not OK: the reasons of its seeds, each once."""
  return '; '.join(dict.fromkeys(filter(None, summary.reasons))) or 'no reason was recorded'


# --- cells ------------------------------------------------------------------------------------------------------------

def rules(lines: Sequence[Line]) -> tuple[int, ...]:
  """Lines before which the category changes, or the approaches begin that the study does not have."""
  kinds = [(bool(line.code), line.category) for line in lines]
  return tuple(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1] and (kinds[i][0] or kinds[i - 1][0]))


def zero_without_sign(text: str) -> str:
  """'-0.00' and '+0.00' as '0.00'."""
  return text[1:] if text[:1] in '+-' and not text.strip('+-0.') else text


def percent(value: float, *, sign: bool = False) -> str:
  """A fraction in percent, two decimals; 'n/a' for NaN."""
  return 'n/a' if math.isnan(value) else zero_without_sign(f'{100 * value:{"+" if sign else ""}.2f}')


def measured_text(summary: Summary, metric: str) -> str:
  """Mean and population std as the study prints them: '98.63±0.066', relative changes '+0.75', AAOD '0.0140±0.001'."""
  mean, std = summary.mean(metric), summary.std(metric)
  if math.isnan(mean) or metric in ('acc_rel', 'asr_rel', 'aaod_rel', 'net'):
    return percent(mean, sign=True)
  return f'{mean:.4f}±{std:.3f}' if metric == 'aaod' else f'{percent(mean)}±{100 * std:.3f}'


def measured_cell(summary: Summary, metric: str, published: str = '') -> Cell:
  """One figure of a summary that is OK."""
  mean = summary.mean(metric)
  if math.isnan(mean):
    return Cell('n/a', published, title=', '.join(summary.flags) or 'not measured')
  return Cell(measured_text(summary, metric), published, sort=mean)


def wide_cells(v: View, line: Line, column: Column, metrics: Sequence[str],
               text: Callable[[Summary, str, str], Cell] = measured_cell) -> list[Cell]:
  """The cells of one approach and subject in a wide table: figures, or one word across; `text` makes a figure."""
  printed = [v.printed(line, column, m) for m in metrics]
  if not any(printed):
    outcome = v.published_outcome(line, column)
    printed = [outcome if outcome != 'OK' else ''] + [''] * (len(metrics) - 1)
  word, why = v.word(line, column)
  if word:
    return [Cell(word, ' / '.join(filter(None, printed)), span=len(metrics), title=why)]
  summary = v.summary(line, column)
  return [text(summary, m, p) for m, p in zip(metrics, printed, strict=True)]


def paired_cells(v: View, line: Line, column: Column, metrics: Sequence[str], unpublished: Sequence[str] = (),
                 text: Callable[[Summary, str], Cell] = measured_cell) -> list[Cell]:
  """The same for a table of one subject: for each metric our cell, then, unless `unpublished`, the published one."""
  word, why = v.word(line, column)
  summary, outcome = v.summary(line, column), v.published_outcome(line, column)
  cells = []
  for k, metric in enumerate(metrics):
    cells.append(Cell(word if k == 0 else '', title=why if k == 0 else '') if word else text(summary, metric))
    if column.dataset and metric not in unpublished:
      figure = v.figure(line, column, metric)
      cells.append(Cell(v.printed(line, column, metric), sort=figure.mean) if figure else
                   Cell(outcome if k == 0 and outcome != 'OK' else ''))
  return cells


def difference_cell(v: View, line: Line, column: Column, metric: str) -> Cell:
  """Ours minus published, in the printed unit; '*' where it exceeds twice its standard error.

  |difference| > 2 sqrt(s1^2 / n1 + s2^2 / n2) with sample variances; without a second seed, or a published std, there
  is no such bound, which '?' says.
  """
  if not column.dataset:
    return Cell('no counterpart')
  summary = v.summary(line, column)
  figure = v.figure(line, column, metric)
  if summary is None or summary.outcome != 'OK' or figure is None or math.isnan(summary.mean(metric)):
    return Cell('')
  difference = summary.mean(metric) - figure.mean
  flag = {True: '*', False: '', None: '?'}[exceeds(difference, summary.values[metric], figure.std)]
  scaled = f'{difference:+.4f}' if metric == 'aaod' else percent(difference, sign=True)
  return Cell(zero_without_sign(scaled) + flag, sort=difference)


def exceeds(difference: float, values: Sequence[float], published_std: float) -> bool | None:
  """Whether a difference is beyond twice its standard error; None if that is unknown. `published_std` has ddof 0."""
  n = len(values)
  if n < 2 or math.isnan(published_std):
    return None
  mean = sum(values) / n
  ours = sum((x - mean) ** 2 for x in values) / (n - 1) / n
  theirs = published_std ** 2 * REPEATS / (REPEATS - 1) / REPEATS
  return abs(difference) > 2 * math.sqrt(ours + theirs) + 1e-12   # rounding is no difference


def averaged_over(v: View, columns: Sequence[Column], metrics: Sequence[str]) -> list[str]:
  """Notes: over how many seeds means of these metrics over these subjects are, and where that is fewer than ran."""
  subjects = {c.subject: c.title for c in columns}
  averaged = [(s, {len(s.values[m]) for m in metrics if s.values.get(m)}) for s in v.summaries
              if s.subject in subjects and s.outcome == 'OK']
  seeds = sorted(set().union(*(counts for _, counts in averaged)))
  spread = ' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else '0'
  notes = [f'Mean±std (population, ddof 0) over {spread} seed{"" if spread == "1" else "s"}; the top three of a '
           'column are bold, the bottom three italic.']
  fewer = [f'{s.key} on {subjects[s.subject]} {min(counts)} of {len(s.seeds)}' for s, counts in averaged
           if counts and min(counts) < len(s.seeds)]
  if fewer:
    notes.append(f'Means over fewer seeds than were run: {", ".join(fewer)}.')
  return notes


def legend(v: View, columns: Sequence[Column], metrics: Sequence[str]) -> list[str]:
  """Notes that explain what stands in the cells of a table of means of these metrics over these subjects."""
  notes, subjects = averaged_over(v, columns, metrics), {c.subject for c in columns}
  if any(c.dataset for c in columns):
    notes.append('Second figures are published and were not measured here; '
                 f'{DAGGER} marks those that contradict others of the same paper.')
  if any(not c.dataset for c in columns) and v.published:
    notes.append(f'{STAND_IN}: stand-in; the study has no counterpart.')
  constant = dict.fromkeys(s.key for s in v.summaries if s.deterministic and s.subject in subjects)
  if constant:
    notes.append(f'Deterministic, the seed changes nothing: {", ".join(constant)}.')
  return notes
