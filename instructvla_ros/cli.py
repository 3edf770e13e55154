"""``instructvla <verb>``: the command line.

Each module of :mod:`instructvla_ros.commands` is a verb of the same name with ``HELP``, ``add_arguments(parser)`` and
``run(arguments) -> int``, and if it likes ``EXAMPLES`` (lines for the help) and ``ORDER`` (place in the help).
Modules import what they need inside ``run``, so that help is instant. Exit codes: 0 done,
1 it ran and the answer is no (a task not solved, a check not passed), 2 it cannot run, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from . import commands
from .errors import InstructVLAError, suggest

DESCRIPTION = (
    'Vision-language-action policies on a Franka arm in ROS 2: say what to do, see what it thinks, watch it act.'
)


def verbs() -> dict[str, ModuleType]:
    """Every command by its name, in the order of the help."""
    found = {
        info.name.replace('_', '-'): importlib.import_module(f'{commands.__name__}.{info.name}')
        for info in pkgutil.iter_modules(commands.__path__)
        if not info.name.startswith('_')
    }
    return dict(sorted(found.items(), key=lambda item: (getattr(item[1], 'ORDER', 50), item[0])))


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line with the way out."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with code 2."""
        self.exit(2, f'{self.prog}: {message}. See `{self.prog} --help`\n')


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=110)


def build_parser(found: dict[str, ModuleType]) -> Parser:
    """Parser with one subparser per verb."""
    parser = Parser(prog='instructvla', description=DESCRIPTION, formatter_class=_help_format)
    parser.add_argument('--version', action='version', version=f'instructvla_ros {version()}')
    # The verbs may have subparsers of their own: the name must not meet theirs.
    children = parser.add_subparsers(dest='_command', metavar='<verb>', title='verbs', parser_class=Parser)
    for name, module in found.items():
        examples = '\n'.join(f'  {line}' for line in getattr(module, 'EXAMPLES', ()))
        child = children.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or module.HELP).strip(),
            epilog=f'examples:\n{examples}' if examples else None,
            formatter_class=_help_format,
        )
        module.add_arguments(child)
    return parser


def version() -> str:
    """Version of the installed package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed('instructvla_ros')
    except PackageNotFoundError:  # a colcon workspace has no Python metadata
        return '(from source)'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    found = verbs()
    if arguments and not arguments[0].startswith('-') and arguments[0] not in found:
        print(f'instructvla: unknown verb {arguments[0]!r}.{suggest(arguments[0], found)}', file=sys.stderr)
        return 2
    parser = build_parser(found)
    if not arguments:
        parser.print_help()
        return 0
    try:
        parsed = parser.parse_args(arguments)
        return int(found[arguments[0]].run(parsed))
    except SystemExit as end:  # argparse, after --help or an error it has already printed
        return end.code if isinstance(end.code, int) else 2
    except InstructVLAError as err:
        print(f'instructvla {arguments[0]}: {err}', file=sys.stderr)
        return 2
    except KeyboardInterrupt as err:
        print('\ninterrupted; nothing is left running', file=sys.stderr)
        return 128 + getattr(err, 'number', 2)
    except BrokenPipeError:  # the reader of our output has left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as err:  # a full disk, a folder that may not be written
        if err.filename is None:
            raise
        print(f'instructvla {arguments[0]}: {err.filename}: {err.strerror}; choose another place', file=sys.stderr)
        return 2


if __name__ == '__main__':
    raise SystemExit(main())
