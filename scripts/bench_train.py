#!/usr/bin/env python3
"""How much faster a training step is than the same step in the reference's order of work.

    python scripts/bench_train.py --size medium --repeats 7 --threads 2

Runs both alternately in one process on random weights and prints medians and their ratio; see training/bench.py for
what the reference's order is. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Measure; 1 when the ratio is below --least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--size', default='medium', choices=('tiny', 'medium', 'eagle2_2b'))
    add('--recipe', nargs='+', default=['stage1', 'stage2'], choices=('stage1', 'stage2', 'onsite'))
    add('--batch', type=int, default=4)
    add('--repeats', type=int, default=5)
    add('--device', default='auto')
    add('--threads', type=int, default=0, help='of torch on a CPU; 0: all cores')
    add('--least', type=float, default=0.0, help='fail below this ratio')
    add('--out', type=Path, help='file of the results')
    args = parser.parse_args(argv)

    from instructvla_ros.evaluation import machine
    from instructvla_ros.training.bench import measure_step

    results = []
    for recipe in args.recipe:
        found = measure_step(
            args.size,
            recipe,
            batch=args.batch,
            repeats=args.repeats,
            device=args.device,
            threads=args.threads,
            progress=lambda text: print(text, file=sys.stderr),
        )
        print(found.text())
        results.append(found)
    if args.out:
        content = {
            'created': time.strftime('%Y-%m-%d %H:%M:%S'),
            'machine': machine.facts(),
            'versions': machine.versions(),
            'load': os.getloadavg(),
            'steps': [r.to_dict() for r in results],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return 0 if min(r.ratio for r in results) >= args.least else 1


if __name__ == '__main__':
    raise SystemExit(main())
