"""One check per file, named after the attack that it catches (docs/VERIFICATION.md)."""

from cask_eval.verify.checks.v01_protocol import v01
from cask_eval.verify.checks.v02_registration import v02
from cask_eval.verify.checks.v03_chain import v03
from cask_eval.verify.checks.v04_roots import v04
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
from cask_eval.verify.checks.v25_parsing import v25

CHECKS = (v01, v02, v03, v04, v06, v07, v08, v09, v10, v11, v12, v13, v14, v15, v16, v17, v18, v19, v20, v21, v25)

#: Attacks that this version does not look for: id → (title, why).
OPEN = {
    "V05": ("not back-dated", "not part of this version: no third party's time stamp is read"),
    "V22": ("no stale outputs", "not part of this version; V06 and V16 bind records to registration and schedule"),
    "V23": ("answer key and grader", "not a check of its own: V08 (answers) and V13 (grader)"),
    "V24": ("no study left out", "not part of this version: studies outside this ledger cannot be seen"),
}
