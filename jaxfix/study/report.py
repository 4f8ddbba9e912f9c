"""The report of a study: one self-contained page, and everything on it as files.

    OUT/index.html, OUT/report.md      the same content; the page needs no network and no other file
    OUT/tables/T2.md|html|tex|csv      every table
    OUT/figures/P1.svg|png|csv         every plot, and the numbers that it draws
    OUT/results.jsonl                  the rows that all of it was made from
    OUT/manifest.json                  SHA-256 of every file, version of the generator

The same store gives the same bytes: nothing depends on when or where the report is written. Rows alone give less:
curves and stored predictions are read from the folder of the store.

Decided here: of several rows of one seed the newest counts, and seeds that were measured with other settings, another
original or other splits than the newest are left out (`store.newest`), with a remark; rows of two suites for one cell
need `--suite`; `results.jsonl` holds the rows that were used, and no others.
"""
import base64
import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jinja2

from jaxfix.errors import OutputError, require
from jaxfix.files import sha256_of_bytes
from jaxfix.study import digest, outline, store
from jaxfix.study import table as tables
from jaxfix.study.bundle import check_replaceable, replacing_folder
from jaxfix.study.outline import Section
from jaxfix.study.plots import Plot, images, to_csv
from jaxfix.study.published import Published
from jaxfix.study.store import Results
from jaxfix.study.table import Table

FORMATS = ('md', 'html', 'tex')


def select(results: Results, *, suite: str | None = None, allow_mixed: bool = False) -> Results:
  """The rows that a report is made from: those of a suite, the newest of every cell.

  Args:
    results: of a store.
    suite: name of the campaign; None for all rows.
    allow_mixed: accept rows of several versions of the code.
  Raises:
    BadInputError: there is no such row, or rows of two git commits, or of two suites for one cell.
  """
  known = sorted({row['suite'] for row in results.rows})
  mine = [row for row in results.rows if suite is None or row['suite'] == suite]
  rows = store.newest(mine)
  require(bool(rows), f'There is no row of suite {suite!r}; there is {", ".join(map(repr, known))}.' if known else
          'The results have no rows: nothing was run yet.')
  suites = collections.defaultdict(set)
  for row in rows:
    suites[tuple(row[k] for k in ('subject', 'approach', 'postprocess'))].add(row['suite'])
  twice = sorted(next((found for found in suites.values() if len(found) > 1), ()))
  require(not twice, f'Suites {" and ".join(map(repr, twice))} ran the same approach on the same subject: choose one '
          'with --suite.')
  commits = sorted({row['git_commit'] or 'unknown' for row in rows})
  require(allow_mixed or len(commits) == 1, f'The rows come from {len(commits)} git commits '
          f'({", ".join(c[:12] for c in commits)}), and their figures may differ for that alone: run the study again, '
          'choose a --suite, or give --allow_mixed.')
  kept = {row['run_id'] for row in rows}
  passed_over = tuple(row for row in mine if row['run_id'] not in kept)
  return dataclasses.replace(results, rows=rows, left_out=(*results.left_out, *passed_over))


def write(results: Results, out: str | os.PathLike, *, published: Published | None, formats: Sequence[str] = FORMATS,
          suite: str | None = None, allow_mixed: bool = False,
          on_step: Callable[[str, int, int], None] = lambda what, done, total: None) -> pathlib.Path:
  """Writes the bundle, or leaves what was there as it was.

  Args:
    results: of a store, see `select`.
    out: folder; a report that is there is replaced as a whole.
    published: the study's tables, or None for the measured ones alone.
    formats: of 'md', 'html' and 'tex'; CSV, figures and rows are always written.
    suite, allow_mixed: see `select`.
    on_step: called with what is being drawn, and how many of how many are done.
  Returns:
    Path of the page, or of the Markdown, or of the folder where neither was asked for.
  Raises:
    BadInputError: see `select`; or an unknown format.
    OutputError: `out` is where the results are, holds files that no report wrote, or cannot be written.
  """
  require(bool(formats) and set(formats) <= set(FORMATS),
          f'Formats are {", ".join(FORMATS)}, got {", ".join(formats) or "none"}.')
  out = pathlib.Path(out)
  require(results.folder is None or os.path.realpath(results.folder) != os.path.realpath(out),
          f'Cannot write {out}: the results are read from there. Choose another output folder.', OutputError)
  check_replaceable(out)
  results = select(results, suite=suite, allow_mixed=allow_mixed)
  sections = outline.sections(results, published)
  lines = ''.join(json.dumps(row, separators=(',', ':'), allow_nan=False) + '\n' for row in results.rows).encode()
  with replacing_folder(out, {'results_sha256': sha256_of_bytes(lines), 'rows': len(results.rows)}) as folder:
    (folder / store.FILE).write_bytes(lines)
    _write_tables(folder / 'tables', [t for s in sections for t in s.all_tables], formats)
    drawn = _draw(folder / 'figures', [p for s in sections for p in s.all_plots], on_step)
    if 'md' in formats:
      (folder / 'report.md').write_text(_markdown(results, sections), encoding='utf-8')
    if 'html' in formats:
      (folder / 'index.html').write_text(_html(results, sections, drawn, formats), encoding='utf-8')
  return out / {True: 'index.html', False: 'report.md' if 'md' in formats else ''}['html' in formats]


def summary(results: Results, published: Published | None) -> tuple[str, ...]:
  """The ten lines at the top of the report, and what it leaves out."""
  return (*digest.ten_lines(*outline.rows_and_summaries(results), published), *digest.passed_over(results.left_out))


def file_stem(identifier: str) -> str:
  """An id as a file name without its ending."""
  return re.sub(r'[^A-Za-z0-9_.-]+', '_', identifier)


def _write_tables(folder: pathlib.Path, found: Iterable[Table], formats: Sequence[str]) -> None:
  folder.mkdir()
  for table in found:
    for format in (*formats, 'csv'):
      if format in table.formats:
        (folder / f'{file_stem(table.id)}.{format}').write_text(tables.RENDERERS[format](table), encoding='utf-8')


def _draw(folder: pathlib.Path, plots: Sequence[Plot], on_step: Callable[[str, int, int], None]) -> dict[str, str]:
  """Writes every plot; id -> the SVG as a data URI."""
  folder.mkdir()
  uris = {}
  for done, plot in enumerate(plots):
    on_step(plot.id, done, len(plots))
    svg, png = images(plot)
    (folder / f'{plot.stem}.svg').write_bytes(svg)
    (folder / f'{plot.stem}.png').write_bytes(png)
    (folder / f'{plot.stem}.csv').write_text(to_csv(plot), encoding='utf-8')
    uris[plot.id] = 'data:image/svg+xml;base64,' + base64.b64encode(svg).decode()
  return uris


def _html(results: Results, sections: Sequence[Section], drawn: Mapping[str, str], formats: Sequence[str]) -> str:
  environment = _environment(autoescape=True)
  environment.filters |= {'table': tables.to_html, 'kind': _kind}
  return environment.get_template('report.html').render(
    title=outline.title(results), sections=sections, drawn=drawn, formats=formats)


def _kind(table: Table) -> str:
  """'numbers' or 'words': how its cells are aligned."""
  return 'numbers' if any(cell.sort is not None for row in table.rows for cell in row) else 'words'


def _markdown(results: Results, sections: Sequence[Section]) -> str:
  environment = _environment(autoescape=False)
  environment.filters |= {'table': tables.to_markdown, 'plain': tables.escape_markdown}
  return environment.get_template('report.md').render(title=outline.title(results), sections=sections)


def _environment(autoescape: bool) -> jinja2.Environment:
  return jinja2.Environment(loader=jinja2.PackageLoader('jaxfix.study'), autoescape=autoescape, trim_blocks=True,
                            lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
