"""Makes `benchmarks` importable, which is not installed."""

import sys

from support.paths import ROOT

sys.path.append(str(ROOT))
