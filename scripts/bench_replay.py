#!/usr/bin/env python3
"""Speed, memory and repeatability of the direct replay: two 640x480 cameras at 15 Hz, joints at 100 Hz, tiny model.

    python scripts/bench_replay.py                       # 60 s bag, then memory over a 600 s bag
    python scripts/bench_replay.py --memory-seconds 0    # speed and repeatability only
    OMP_NUM_THREADS=2 python scripts/bench_replay.py --repeats 5 --json

The same as `instructvla bench replay`, with every choice; see evaluation/bench_replay.py.
"""

from __future__ import annotations

import argparse
import json
import sys

from instructvla_ros.evaluation.bench_replay import TARGET, measure_replay


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=60.0, help='length of the bag for the speed')
    parser.add_argument('--memory-seconds', type=float, default=600.0, help='the same for the memory; 0: leave out')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--raw', action='store_true', help='raw pictures instead of JPEG')
    parser.add_argument('--no-safety', action='store_true', help='without the controller in dry-run')
    parser.add_argument('--checkpoint', default='', help='instead of random weights of the tiny preset')
    parser.add_argument('--json', action='store_true')
    return parser.parse_args()


def main() -> int:
    """Measure and print."""
    args = arguments()
    result = measure_replay(
        args.seconds,
        args.memory_seconds,
        args.repeats,
        raw=args.raw,
        safety=not args.no_safety,
        checkpoint=args.checkpoint,
    )
    if args.json:
        print(json.dumps(result))
    else:
        s = result['speed']
        stages = ', '.join(f'{k} {v:.1f} ms' for k, v in s['per_chunk_ms'].items())
        print(f'speed       {s["times_real_time"]:.1f} x real time (target {TARGET:.0f}), {s["chunks"]} chunks')
        print(f'one by one  {s["one_by_one"]:.1f} x real time')
        print(f'per chunk   {stages}')
        print(f'repeatable  {"bit for bit" if result["repeatable"] else "NO"} over {args.repeats} runs')
        if 'memory' in result:
            m = result['memory']
            print(f'memory      {m["early_mb"]:.0f} -> {m["late_mb"]:.0f} MB over {m["seconds"]:.0f} s of bag')
    return 0 if result['repeatable'] else 1


if __name__ == '__main__':
    sys.exit(main())
