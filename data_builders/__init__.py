"""Data builders: programs become annotations, CPT corpora, DPO pairs and SFT sets.

All of it is reached through `embuild` (data_builders/cli.py).
"""

from pathlib import Path

BUILTIN = Path(__file__).parent / "builtin"
