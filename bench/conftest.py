"""Puts this folder's modules within reach of its benchmarks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
