# SPDX-License-Identifier: MIT
"""The mutants fit the engine as it is: one that does not would be no proof, and is run by hand alone."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, Mutant, mutated
from tests.serverlib import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits(mutant: Mutant) -> None:
    source = (ROOT / "plugins" / "module_utils" / "switching" / mutant.file).read_text(encoding="utf-8")
    compile(mutated(mutant, source), mutant.file, "exec")
