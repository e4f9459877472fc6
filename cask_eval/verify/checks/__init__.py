"""One check per file, named after the attack that it catches (docs/VERIFICATION.md)."""

from cask_eval.verify.checks.v01_protocol import v01
from cask_eval.verify.checks.v02_registration import v02
from cask_eval.verify.checks.v03_chain import v03
from cask_eval.verify.checks.v04_roots import v04
from cask_eval.verify.checks.v05_dates import v05
from cask_eval.verify.checks.v06_seeds import v06
from cask_eval.verify.checks.v07_one_shot import v07
from cask_eval.verify.checks.v08_splits import v08
from cask_eval.verify.checks.v09_disjoint import v09
from cask_eval.verify.checks.v10_tuning import v10
from cask_eval.verify.checks.v11_trials import v11
from cask_eval.verify.checks.v12_status import v12
from cask_eval.verify.checks.v13_grades import v13
from cask_eval.verify.checks.v14_methods import v14
from cask_eval.verify.checks.v15_environment import v15
from cask_eval.verify.checks.v16_caches import v16
from cask_eval.verify.checks.v17_selection import v17
from cask_eval.verify.checks.v18_cells import v18
from cask_eval.verify.checks.v19_stopping import v19
from cask_eval.verify.checks.v20_test import v20
from cask_eval.verify.checks.v21_analysis import v21
from cask_eval.verify.checks.v22_stale import v22
from cask_eval.verify.checks.v23_grader import v23
from cask_eval.verify.checks.v24_lineage import v24
from cask_eval.verify.checks.v25_parsing import v25

CHECKS = (
    v01, v02, v03, v04, v05, v06, v07, v08, v09, v10, v11, v12, v13, v14, v15, v16, v17, v18, v19, v20, v21, v22, v23,
    v24, v25,
)  # fmt: skip
