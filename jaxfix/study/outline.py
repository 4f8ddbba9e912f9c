"""What a report says, and in which order: sections of sentences, tables and plots, before any format."""
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxfix.study import deviations, digest, findings, pages, plots, tables
from jaxfix.study.aggregate import Summary, summarize
from jaxfix.study.plots import Plot
from jaxfix.study.published import Published
from jaxfix.study.store import Results
from jaxfix.study.table import Cell, Table

_MOST_ROWS = 2000   # of the list in the appendix; a browser is slow to sort more

_PROVENANCE = ('git_commit', 'git_dirty', 'platform', 'device_kind', 'device_count', 'host_cpu', 'prng_impl',
               'dataset_source', 'schema')


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading and what stands below it.

  Attributes:
    id: anchor.
    title: heading.
    points: a list of sentences.
    text: a sentence before everything else, '' for none.
    tables, plots: in order.
    notes: shown on demand.
    parts: sections below this one.
    code: title -> preformatted text, shown on demand.
  """
  id: str
  title: str
  points: tuple[str, ...] = ()
  text: str = ''
  tables: tuple[Table, ...] = ()
  plots: tuple[Plot, ...] = ()
  notes: tuple[str, ...] = ()
  parts: tuple['Section', ...] = ()
  code: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def empty(self) -> bool:
    return not (self.points or self.tables or self.plots or self.parts)

  @property
  def all_tables(self) -> Iterator[Table]:
    """Its own and those of its parts."""
    return itertools.chain(self.tables, *(part.all_tables for part in self.parts))

  @property
  def all_plots(self) -> Iterator[Plot]:
    """Its own and those of its parts."""
    return itertools.chain(self.plots, *(part.all_plots for part in self.parts))


def title(results: Results) -> str:
  """'Repair study NAME', or of all suites."""
  return 'Repair study ' + ', '.join(filter(None, sorted({row['suite'] for row in results.rows})))


def rows_and_summaries(results: Results) -> tuple[Sequence[Mapping[str, Any]], tuple[Summary, ...]]:
  """The rows, and one summary an approach and subject."""
  return results.rows, summarize(results.rows)


def sections(results: Results, published: Published | None) -> tuple[Section, ...]:
  """The report; sections without anything to show are absent."""
  rows, summaries = rows_and_summaries(results)
  found_tables, found_plots = tables.all_tables(results, published), plots.all_plots(results, published)
  of = lambda *ids: tuple(t for i in ids for t in found_tables if t.id.partition('.')[0] == i)
  drawn = lambda *ids: tuple(p for i in ids for p in found_plots if p.id.partition('.')[0] == i)
  result = (
    Section('summary', 'Summary', digest.ten_lines(rows, summaries, published)),
    Section('settings', 'Settings against the study', tables=(deviations.deviations_table(results, published),),
            text='What was done otherwise than in the Fixing Study, from the settings that the rows record; where they '
                 'record none, the line says so.'),
    Section('subjects', 'Subjects', tables=of('T1')),
    Section('effectiveness', 'Effectiveness', tables=of('T2', 'T7'), plots=drawn('P1', 'P12')),
    Section('properties', 'Robustness, fairness, negative flips', tables=of('T4'), plots=drawn('P13')),
    Section('groups', 'Significance groups', tables=of('T3'), plots=drawn('P2', 'P3')),
    Section('time', 'Time', tables=of('T5'), plots=drawn('P4')),
    Section('applicability', 'Applicability', tables=of('T6')),
    Section('post-processing', 'Post-processing', tables=of('T9'), plots=drawn('P11')),
    Section('agreement', 'Agreement with the published figures', tables=of('T8')),
    Section('findings', "The study's findings", tables=(findings.findings_table(summaries, published),)),
    Section('approaches', 'Approaches one by one',
            parts=tuple(_approach(page, rows, drawn('P5')) for page in pages.pages(results, summaries))),
    Section('threats', 'What speaks against these figures', (
      *digest.threats(rows, summaries, published), *digest.passed_over(results.left_out))),
    Section('appendix', 'Appendix', parts=(
      Section('versions', 'Versions and machines', tables=(_versions(rows),)),
      Section('rows', 'Rows', tables=(_rows(rows),), text=_where_rows_are(rows)))),
  )
  return tuple(s for s in result if not s.empty)


def _approach(page: pages.Page, rows: Sequence[Mapping[str, Any]], curves: Iterable[Plot]) -> Section:
  configs = {}
  for row in rows:
    if row['approach'] == page.approach and row['postprocess'] == 'none':
      text = json.dumps(row['config'], indent=1, sort_keys=True)
      configs.setdefault(text, {})[row['subject']] = None
  return Section(f'approach-{page.approach}', page.title, page.lines, tables=page.tables,
                 plots=tuple(p for p in curves if p.approach == page.approach), notes=page.notes,
                 code={f'Full settings on {", ".join(used)}': text for text, used in configs.items()})


def _versions(rows: Sequence[Mapping[str, Any]]) -> Table:
  """Everything that a figure may depend on, with all values that the rows have."""
  found: dict[str, set[str]] = {}
  for row in rows:
    flat = {**{f'version of {name}': value for name, value in row['versions'].items()},
            **{name: row[name] for name in _PROVENANCE}}
    for name, value in flat.items():
      found.setdefault(name, set()).add('-' if value in (None, '') else str(value))
  found['first start'] = {min(row['started_utc'] for row in rows)}
  found['last end'] = {max(row['ended_utc'] for row in rows)}
  return Table('versions', 'Versions, machines and dates; several values where the rows differ.', ('what', 'value'),
               tuple((Cell(name), Cell(', '.join(sorted(values)))) for name, values in found.items()))


def _rows(rows: Sequence[Mapping[str, Any]]) -> Table:
  percents = ('acc', 'rr', 'nfr', 'asr')
  lines = tuple(
    (Cell(row['run_id']), Cell(row['approach']), Cell(row['subject']), Cell(str(row['seed']), sort=row['seed']),
     Cell('-' if row['postprocess'] == 'none' else row['postprocess']), Cell(row['outcome']),
     *(_number(row[m], 100, 2) for m in percents), _number(row['aaod'], 1, 4), _number(row['repair_seconds'], 1, 1),
     Cell(row['outcome_reason'])) for row in rows[:_MOST_ROWS])
  columns = ('run', 'approach', 'subject', 'seed', 'combined', 'outcome', *(f'{m.upper()} [%]' for m in percents),
             'AAOD', 'seconds', 'reason')
  return Table('rows', 'Every row, in short; results.jsonl has all fields.', columns, lines, formats=('html', 'csv'))


def _where_rows_are(rows: Sequence[Mapping[str, Any]]) -> str:
  some = f'the first {_MOST_ROWS:,} of {len(rows):,} rows' if len(rows) > _MOST_ROWS else 'every row'
  return f'In short, {some}: tables/rows.csv; every row with all fields: results.jsonl.'


def _number(value: float | None, scale: float, places: int) -> Cell:
  return Cell('-') if value is None else Cell(f'{scale * value:.{places}f}', sort=float(value))
