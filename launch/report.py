"""Writes the report of a study: one page, and every table and figure as a file.

  python -m launch.report --results=STORE --out=report                  # index.html, report.md, tables/, figures/
  python -m launch.report --results=STORE --out=report --suite=NAME     # one campaign of a store that has several
  python -m launch.report --results=STORE --out=report --published=none --formats=md

Writes OUT as a whole: a report that is there stays until the new one is complete. Exits 2 on a user's mistake: no rows,
an unknown schema, rows of two git commits without --allow_mixed.
"""
from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxfix.study import published as published_figures
from jaxfix.study import report, store
from launch import cli

_RESULTS = flags.DEFINE_string('results', None, 'Folder of a store, or its results.jsonl.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder of the report.', required=True)
_SUITE = flags.DEFINE_string('suite', None, 'Only rows of this campaign.')
_PUBLISHED = flags.DEFINE_string('published', None, "Folder of published tables, or 'none'. Default: the package's.")
_FORMATS = flags.DEFINE_list('formats', list(report.FORMATS), 'Of md, html, tex. CSV and figures are always written.')
_ALLOW_MIXED = flags.DEFINE_bool('allow_mixed', False, 'Accept rows of several git commits.')


def main() -> int:
  console = cli.console()
  published = None if _PUBLISHED.value == 'none' else published_figures.load(_PUBLISHED.value)
  selection = {'suite': _SUITE.value, 'allow_mixed': _ALLOW_MIXED.value}
  results = report.select(store.read(_RESULTS.value), **selection)
  with Progress(TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(), console=console,
                transient=True) as progress:
    drawing = progress.add_task('drawing')
    path = report.write(results, _OUT.value, published=published, formats=tuple(_FORMATS.value), **selection,
                        on_step=lambda what, done, total: progress.update(drawing, description=f'drawing {what}',
                                                                          completed=done, total=total))
  for line in report.summary(results, published):
    console.print(line, soft_wrap=True, highlight=False)
  console.print(f'Report in {path}', soft_wrap=True, highlight=False)
  return 0


if __name__ == '__main__':
  cli.run(main)
