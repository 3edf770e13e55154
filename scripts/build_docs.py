"""Write the API reference as HTML: every module that needs no ROS, public members only. A warning is an error."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

# Needs ROS 2 and its messages, or is generated; both are described in docs/INTERFACES.md.
LEFT_OUT = ('nodes', 'msg', 'srv', 'action', 'lib', 'commands', 'cli', 'instructvla_ros_s__.*')


def main(argv: list[str] | None = None) -> int:
    """Build into ``--out``; 0 without warnings, 1 with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='build/api', help='folder (default: build/api)')
    parser.add_argument('modules', nargs='*', help='modules to document (default: all)')
    arguments = parser.parse_args(argv)
    try:
        import pdoc
    except ImportError:
        print("pdoc is missing; install the package with its dev extra: pip install '.[dev]'", file=sys.stderr)
        return 2
    pdoc.render.configure(docformat='google', show_source=False)
    wanted = arguments.modules or ['instructvla_ros', *(f'!instructvla_ros.{name}' for name in LEFT_OUT)]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        pdoc.pdoc(*wanted, output_directory=Path(arguments.out))
    said = sorted({str(w.message) for w in found if 'pdoc' in str(w.filename) or issubclass(w.category, UserWarning)})
    for text in said:
        print(f'warning: {text}', file=sys.stderr)
    pages = len(list(Path(arguments.out).rglob('*.html')))
    print(f'{pages} pages in {arguments.out}, {len(said)} warnings')
    return 1 if said else 0


if __name__ == '__main__':
    raise SystemExit(main())
