"""Run the theories and the pruners on one problem; ledger, resume, report."""

from dynprune.study._config import (
    ANALYSES,
    METHODS,
    Config,
    configure,
    parse_config,
    read_config,
)
from dynprune.study._doctor import doctor
from dynprune.study._findings import VERDICTS, Findings, LedgerLine
from dynprune.study._ledger import ledger
from dynprune.study._run import Study, report, run

__all__ = [
    "ANALYSES",
    "METHODS",
    "VERDICTS",
    "Config",
    "Findings",
    "LedgerLine",
    "Study",
    "configure",
    "doctor",
    "ledger",
    "parse_config",
    "read_config",
    "report",
    "run",
]
