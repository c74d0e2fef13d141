"""kNN as lightly does it; run by `benchmarks/evaluate.py` in an environment that has lightly."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--k", type=int, required=True)
    args = parser.parse_args()
    names = ("train", "train_labels", "test", "test_labels")
    train, train_labels, test, test_labels = (torch.from_numpy(np.load(args.folder / f"{name}.npy")) for name in names)
    start = time.perf_counter()
    bank = F.normalize(train, dim=1).T.contiguous()
    guesses = [
        # its callback evaluates one batch of the validation loader at a time
        knn_predict(F.normalize(part, dim=1), bank, train_labels, int(train_labels.max()) + 1, knn_k=args.k)[:, 0]
        for part in test.split(256)
    ]
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "top1": float((torch.cat(guesses) == test_labels).float().mean())}))


if __name__ == "__main__":
    main()
