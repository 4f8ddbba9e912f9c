"""Linear, quadratic and mixed-integer programs with typed outcomes."""
from jaxfix.solve.dual import farkas_bound, safe_dual_bound, safe_dual_bound_float
from jaxfix.solve.highs import solve_lp, solve_milp
from jaxfix.solve.minimal_change import MinimalChange, Soft, minimal_change, minimality_program
from jaxfix.solve.program import InfeasibleProgramError, LinearProgram, Solution, Statistics, Status
from jaxfix.solve.quadratic import solve_qp
from jaxfix.solve.rows import RankOneRows, RowOracle

__all__ = (
  'InfeasibleProgramError',
  'LinearProgram',
  'MinimalChange',
  'RankOneRows',
  'RowOracle',
  'Soft',
  'Solution',
  'Statistics',
  'Status',
  'farkas_bound',
  'minimal_change',
  'minimality_program',
  'safe_dual_bound',
  'safe_dual_bound_float',
  'solve_lp',
  'solve_milp',
  'solve_qp',
)
