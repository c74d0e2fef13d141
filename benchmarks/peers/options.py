"""The options that `benchmarks/throughput.py` gives the peers' scripts."""

from __future__ import annotations

import argparse


def training_parser() -> argparse.ArgumentParser:
    """A parser that a script may add its own options to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--stem", choices=["small", "standard"], required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--precision", choices=["32", "bf16"], required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--device", required=True)
    return parser
